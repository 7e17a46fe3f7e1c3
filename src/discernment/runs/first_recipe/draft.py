"""The choices of a first recipe as YAML, each with its reason."""

from __future__ import annotations

from typing import Any

from discernment.models.precision import UNITS
from discernment.prompts import STARTER_SETS
from discernment.runs.first_recipe.begin import BATCH, LONGEST, Choices
from discernment.runs.first_recipe.circumstances import gib
from discernment.runs.first_recipe.estimate import USABLE, in_minutes
from discernment.runs.first_recipe.sets import Source
from discernment.runs.first_recipe.sheet import Sheet

SMALL = 200_000_000
"""Weights up to which the quickstart's learning rates are taken; chosen for 135 million, at 270 they cost much (docs/study.md)."""
EVERY = 50


def as_yaml(choices: Choices, name: str, command: str) -> str:
    """The recipe.

    Args:
        choices: What it says.
        name: What it is called.
        command: The command that it was made by.
    """
    sheet = Sheet()
    sheet.comment(
        f"Does {choices.spec.model} refuse too much, and what keeps a model from it at the same safety? Written by `{command}`; "
        "every choice has its reason above it. Change what you know better (docs/recipes.md has all keys)."
    )
    sheet.comment(_about(choices))
    sheet.comment(
        f"By estimate the run takes {_minutes(choices)}."
        + (" It was made smaller than the quickstart to keep to that." if choices.sizes.share < 1 else "")
    )
    sheet.key("name", name, "Names the run's directory, runs/NAME.")
    _model(sheet, choices)
    _data(sheet, choices)
    _refine(sheet, choices)
    _align(sheet, choices)
    _methods(sheet, choices)
    _evaluate(sheet, choices)
    return sheet.text


def _about(choices: Choices) -> str:
    facts = choices.facts
    reads = f"reads {facts.positions} tokens" if facts.positions else "reads prompts of any length"
    template = "with" if facts.chat.template == "chat" else "without"
    return (
        f"The model has {facts.parameters / 1e6:,.1f} million weights in {facts.layers} layers, {reads}, and comes {template} a "
        f"chat template. The machine: {choices.machine.in_words}."
    )


def _minutes(choices: Choices) -> str:
    if choices.seconds is None:
        return f"a time that is not known: {choices.untried}"
    return in_minutes(choices.seconds)


def _model(sheet: Sheet, choices: Choices) -> None:
    spec, facts = choices.spec, choices.facts
    sheet.comment("The base model: all methods start from it, and the row `base` is what it does today.")
    sheet.open("model")
    sheet.key("model", spec.model, "As you named it.")
    given = spec.model_dump(mode="json", exclude_unset=True, exclude={"model", "system", "dtype", "template"})
    for option, value in given.items():
        sheet.key(option, value, "As you said.")
    if spec.system == "" and facts.own_system:
        sheet.key(
            "system",
            "",
            f"The template's own system message takes {facts.own_system} tokens of every prompt, which costs time on a processor; "
            "leave this line out to measure the model under that message.",
        )
    elif spec.system is not None:
        sheet.key("system", spec.system, "As you said.")
    if spec.template != "auto":
        sheet.key("template", spec.template, "As you said.")
    elif facts.chat.template == "plain":
        sheet.key(
            "template",
            "plain",
            "The tokenizer has no chat template, so prompts stand under the headings Instruction and Response.",
        )
    _precision(sheet, choices)
    sheet.close()


def _precision(sheet: Sheet, choices: Choices) -> None:
    machine, way = choices.machine, choices.way
    dtype = str(machine.dtype).removeprefix("torch.")
    if "quantization" in way.model:
        sheet.key(
            "quantization", "4bit", "The weights fit in no other form; adapters are trained beside them."
        )
    if "dtype" in way.model:
        sheet.key("dtype", "bfloat16", "Weights in bfloat16 in training too: in float32 they do not fit.")
        return
    if choices.spec.dtype != "auto":
        sheet.key("dtype", choices.spec.dtype, "As you said.")
        return
    units = f"units for bfloat16 ({' or '.join(UNITS)})"
    if machine.device != "cpu":
        why = f"this {machine.device} device computes in {dtype}"
    elif dtype == "bfloat16":
        why = f"this processor has {units}"
    else:
        why = f"this processor has no {units}, or DISCERNMENT_DTYPE says so"
    sheet.key(
        "dtype", "auto", f"Is {dtype} here: {why}. Weights that are trained stay in float32 all the same."
    )


def _data(sheet: Sheet, choices: Choices) -> None:
    if choices.own is not None:
        sheet.comment(f"Your prompts, {choices.own.split}:")
        for line in choices.own.taken:
            sheet.comment(line)
        for line in choices.own.left_out:
            sheet.comment(f"Left out: {line}.")
    else:
        sheet.comment("No --data was given, so the prompts are those that come along.")
    sheet.open("data")
    for entry in choices.data:
        reason = entry.reason
        if entry.name == "safety":
            reason += (
                " The ratio to the general ones decides how much is refused; this one was chosen for a model of 135 million "
                "weights (docs/method.md)."
            )
        sheet.listed(entry.name, [(dict(source), _whose(source)) for source in entry.sources], reason)
    sheet.close()


def _whose(source: Source) -> str:
    """What a set is, in a few words."""
    return STARTER_SETS.get(source["set"], "Your own")


def _refine(sheet: Sheet, choices: Choices) -> None:
    sheet.comment("Stage 1 of `dcr`: takes toxic prompts and others apart in the first layers.")
    sheet.open("refine")
    sheet.key("layer", choices.layer, _layer(choices))
    sheet.key(
        "steps",
        choices.sizes.steps,
        "100 ranked best in the quickstart"
        + (", fewer to keep to the time." if choices.sizes.share < 1 else "."),
    )
    rate, why = (1e-4, "The quickstart's, for a model of its size") if _is_small(choices) else (2e-5, "")
    if choices.way.lora:
        rate, why = 1e-4, "Usual for LoRA, and not chosen by any measurement here"
    elif not why:
        why = "Usual for all weights of a model of this size, and not chosen by any measurement here"
    sheet.key("learning_rate", rate, f"{why}.")
    sheet.key(
        "batch_size", BATCH, "The contrast is within a batch: smaller ones have too few pairs to set apart."
    )
    sheet.key(
        "loss", {"name": "supcon", "temperature": 0.2}, "The quickstart's, chosen on validation prompts."
    )
    sheet.key("evaluate_every", EVERY, "Looks at the validation prompts cost time; two or three will do.")
    sheet.key("stopping", "none", "All steps, as in the quickstart: an early stop would be one more choice.")
    _common(sheet, choices)
    sheet.close()


def _layer(choices: Choices) -> str:
    depth = choices.facts.layers
    if choices.known:
        found = f" Probes alone would say layer {choices.tried.layer}." if choices.tried else ""
        return (
            f"Of {depth} layers; the one that ranked best on validation prompts for this very model and these prompts "
            f"(docs/method.md, the quickstart's options).{found}"
        )
    caution = (
        "A layer that tells the labels apart need not be the best one to train up to: compare some as in docs/recipes.md "
        f"(methods), half of the depth ({max(1, depth // 2)}) among them."
    )
    if choices.tried is None:
        return f"Found by probes when the run begins, since {choices.untried}. {caution}"
    return f"{choices.tried.reason} Of {depth} layers, on the prompts under `contrast_validation`. {caution}"


def _align(sheet: Sheet, choices: Choices) -> None:
    way = choices.way
    sheet.comment("Stage 2: the safety fine-tuning of `stl`, `stl_aug` and `dcr`.")
    sheet.open("align")
    if way.lora:
        rate, why = 2e-4, "Usual for LoRA, and not chosen by any measurement here."
    elif _is_small(choices):
        rate, why = 2e-4, "The quickstart's, for a model of its size."
    else:
        rate, why = (
            2e-5,
            "Usual for all weights of a model of this size, and not chosen by any measurement here.",
        )
    sheet.key("learning_rate", rate, why)
    sheet.key("batch_size", way.batch, _batch(choices))
    if way.accumulation > 1:
        sheet.key(
            "gradient_accumulation",
            way.accumulation,
            "So many batches a step, which makes it one of 8 examples.",
        )
    cut = f"; {choices.cut} of them are cut at the end" if choices.cut else ""
    sheet.key(
        "max_length",
        choices.max_length,
        f"The longest of {choices.examples} examples has {choices.longest} tokens in this model's template{cut} (at most "
        f"{LONGEST} are taken, for the memory).",
    )
    if not way.lora:
        sheet.key(
            "train_embeddings", False, "Held layers stay as stage 1 left them only if the embeddings do too."
        )
    _common(sheet, choices, "As in stage 1, for the same reason.")
    sheet.close()


def _batch(choices: Choices) -> str:
    if choices.way.batch == 8:
        return "Examples a step, as in the quickstart; the memory suffices."
    return "As many examples as fit into the memory at a time."


def _common(sheet: Sheet, choices: Choices, as_in: str = "") -> None:
    """What both stages say of memory; the second says why by naming the first."""
    way, machine = choices.way, choices.machine
    room = f"{gib(USABLE * machine.free)} can be planned with"
    tried = f" ({', '.join(way.before)})" if way.before else ""
    if way.lora:
        keep: dict[str, Any] = {"keep": "adapter"} if "quantization" in way.model else {}
        fits = "" if way.fits else " Even that may not fit: take a larger machine or a smaller model."
        sheet.key(
            "lora",
            keep,
            as_in
            or f"Adapters instead of all weights: {room}, by estimate more than that is needed otherwise{tried}, and {way.name} "
            f"needs {gib(way.needed)}.{fits}",
        )
    else:
        sheet.key(
            "lora",
            None,
            as_in
            or f"All weights are trained: {way.name} needs {gib(way.needed)} by estimate, and {room}{tried}.",
        )
    if way.checkpointing:
        sheet.key(
            "gradient_checkpointing",
            True,
            "Computes activations again instead of keeping them, for the memory.",
        )


def _methods(sheet: Sheet, choices: Choices) -> None:
    sheet.comment("What is compared.")
    sheet.open("methods")
    sheet.item("base", "The model as it is: does it refuse too much?")
    sheet.item("stl", "Ordinary safety fine-tuning, which brings over-refusal along.")
    sheet.item("stl_aug", "The same with answered seemingly toxic prompts in the mix: the plain remedy.")
    sheet.item(
        {"method": "dcr", "options": {"augmented": True}},
        "Contrastive refinement first: the remedy that this package is about. Its stage 2 has the answers of stl_aug, too, which did "
        "better on sources that no training had seen (docs/study.md).",
    )
    if choices.aligned:
        refused = f"the model is aligned already (mean rejection probability of toxic prompts {choices.tried.refused:.2f})"  # type: ignore[union-attr]
        sheet.item("prompted", f"Without training, a system message that asks for answers: {refused}.")
        sheet.item(
            {"method": "self_cd", "name": "base + self_cd", "on": "base"},
            "Without training, decoding away from what the model says when it is told to be careful (docs/field.md).",
        )
    for below in choices.calibrated:
        sheet.item(
            {"method": "calibrated", "name": f"calibrated {below}", "on": below},
            f"{below} with one constant on the tokens that begin a refusal, set so that 95 % of the toxic prompts under "
            "`contrast_validation` get one: its ranking as replies.",
        )
    sheet.close()


def _evaluate(sheet: Sheet, choices: Choices) -> None:
    sheet.comment("What every method is asked, and who judges.")
    sheet.open("evaluate")
    tokens = choices.max_new_tokens
    sheet.key(
        "max_new_tokens",
        tokens,
        "Enough to tell a refusal by its beginning, and quick on a processor; 64 shows more of the replies."
        if choices.machine.device == "cpu"
        else "Enough for replies that hedge before they refuse.",
    )
    sheet.key("batch_size", 64, "Prompts that are answered side by side; lower it if the memory runs out.")
    sheet.key(
        "judge",
        choices.judge,
        "You have trained this judge with `discern judges train`."
        if choices.judge == "encoder"
        else "Phrases of refusal, which need no model; `discern judges train` makes a better one in minutes (docs/judges.md).",
    )
    if choices.aligned:
        sheet.key("reference", "base", "What the others are compared with: the model as you have it.")
    for line in choices.unusable:
        sheet.comment(f"Left out: {line}")
    sheet.comment("No stage trains on any of these.")
    sheet.open("benchmarks")
    for entry in choices.benchmarks:
        sheet.item(dict(entry.sources[0]), entry.reason)
    sheet.close()
    sheet.close()


def _is_small(choices: Choices) -> bool:
    return choices.facts.parameters <= SMALL
