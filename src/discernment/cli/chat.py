"""`discern chat`: talk to a model."""

from typing import Annotated

import typer
from rich.prompt import Prompt

from discernment.cli.console import console, prepare_process, say
from discernment.cli.options import ModelOptions, System, parse_policy


def chat(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, wheel://PACKAGE, or RUN/METHOD, e.g. runs/quickstart/dcr.")
    ],
    system: System = None,
    model_option: ModelOptions = None,
    max_new_tokens: Annotated[int, typer.Option(help="Token cap of a reply.")] = 128,
) -> None:
    """Talk to a model; each reply comes with its rejection probability."""
    prepare_process()
    from discernment.errors import DataError
    from discernment.judges import KeywordJudge
    from discernment.policies.context import check_context
    from discernment.policies.policy import Policy
    from discernment.policies.rejection import rejection_probability

    policy = Policy.load(parse_policy(model, system, model_option), name=model)
    say("Each prompt stands for itself; an empty line ends.")
    while True:
        try:
            prompt = Prompt.ask("[bold]you[/bold]", console=console)
        except EOFError:
            return
        if not prompt.strip():
            return
        try:
            sequences = policy.encode([prompt])
            check_context(policy, sequences, [repr(prompt[:60])], max_new_tokens, "say less or lower the cap")
            refusal = rejection_probability(policy, [prompt])[0]
        except DataError as error:  # this prompt does not fit the model; the next one may
            say(str(error), "red")
            continue
        reply = policy.generate(sequences, max_new_tokens)[0]
        say(reply.text)
        verdict = KeywordJudge().judge(prompt, reply.text)
        say(f"rejection probability {refusal:.3f}, judged {verdict}", "dim")
