"""`discern evaluate`: the replies of one model to prompt sets."""

from pathlib import Path
from typing import Annotated

from discernment.cli import options
from discernment.cli.console import notice, prepare_process, show_results
from discernment.errors import RecipeError
from discernment.files import write_json


def evaluate(
    model: options.AnyModel,
    out: Annotated[Path, options.out_option("Directory for samples and results.")],
    sets: options.Sets = None,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    option: Annotated[
        list[str] | None,
        options.stage_option("Option as KEY=VALUE, e.g. max_new_tokens=64, judge=encoder; may be repeated."),
    ] = None,
    system: options.System = None,
    model_option: options.ModelOptions = None,
    as_json: options.AsJson = False,
) -> None:
    """Let one model reply to prompt sets, and show what it refuses."""
    prepare_process()
    from discernment.cli.reporter import ConsoleReporter
    from discernment.evaluation.evaluate import JudgedOptions
    from discernment.evaluation.results import summarize
    from discernment.evaluation.sample import read_samples
    from discernment.runs.run import evaluate_policy
    from discernment.runs.stages import run_into

    policy = options.parse_policy(model, system, model_option)
    sets = sets or ["starter/pairs:test", "starter/benign:test"]
    if len(set(sets)) < len(sets):
        raise RecipeError("A prompt set is named twice; name each once.")
    reading = options.parse_reading(sets, column, fixed_label, label_map, encoding)
    asked = options.parse_options(JudgedOptions, option)
    inputs = {
        "policy": policy,
        "benchmarks": [options.load_set(name, reading).renamed(name) for name in sets],
        "options": asked.options_for(policy),
        "judge": asked.judge,
    }
    with ConsoleReporter() as reporter:
        extra = {
            "name": model,
            "unscored_limit": asked.unscored_limit,
            "tensor_parallel": asked.tensor_parallel,
            "progress": reporter.progress,
        }
        run_into(out, "evaluate", evaluate_policy, inputs, reporter, extra)
    samples = {model: read_samples(out / "samples.jsonl")}
    results = summarize(samples, base_model=model, reference=model)
    write_json(out / "results.json", results.model_dump(mode="json"))
    show_results(results, as_json=as_json)
    notice(f"Samples: {out / 'samples.jsonl'}; compare with others: discern compare {out} OTHER")
