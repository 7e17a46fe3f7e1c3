"""`discern refine`: stage 1 alone."""

from pathlib import Path
from typing import Annotated

import typer

from discernment.cli import options
from discernment.cli.console import prepare_process, train_into


def refine(
    model: options.Model,
    layer: Annotated[
        str,
        typer.Option(
            help="l: the last layer that is trained, counted from 1; `auto`: where the labels can be told apart."
        ),
    ],
    out: Annotated[Path, options.out_option("Directory for the refined model.")],
    sets: options.Sets = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Prompt sets by which the stage stops.")
    ] = None,
    retained: Annotated[list[str] | None, typer.Option(help="Benign prompt sets for `retention`.")] = None,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    option: options.Options = None,
    system: options.System = None,
    model_option: options.ModelOptions = None,
) -> None:
    """Stage 1 alone: contrastive refinement of the first LAYER layers."""
    prepare_process()
    from discernment.training.contrastive import RefineOptions
    from discernment.training.contrastive import refine as refine_model

    sets = sets or ["starter/pairs:train"]
    reading = options.parse_reading(
        [*sets, *(validation or ()), *(retained or ())], column, fixed_label, label_map, encoding
    )
    inputs = {
        "start": options.parse_policy(model, system, model_option).with_weights("Refinement"),
        "prompts": options.load_sets(sets, "contrast", reading),
        "options": options.parse_options(
            RefineOptions, option, {"layer": int(layer) if layer.isdecimal() else layer}
        ),
        "validation": options.load_sets(validation, "validation", reading) if validation else None,
        "retained": options.load_sets(retained, "retained", reading) if retained else None,
    }
    train_into(out, "refine", refine_model, inputs)
