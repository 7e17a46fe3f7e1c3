"""`discern align`: stage 2 alone."""

from pathlib import Path
from typing import Annotated

import typer

from discernment.cli import options
from discernment.cli.console import prepare_process, train_into


def align(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder, or wheel://PACKAGE; for DCR, what `refine` left, with `-O frozen_layers=LAYER`."
        ),
    ],
    out: Annotated[Path, options.out_option("Directory for the aligned model.")],
    sets: options.Sets = None,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    option: options.Options = None,
    system: options.System = None,
    model_option: options.ModelOptions = None,
) -> None:
    """Stage 2 alone: supervised safety fine-tuning on prompts with replies."""
    prepare_process()
    from discernment.training.supervised import AlignOptions
    from discernment.training.supervised import align as align_model

    sets = sets or ["starter/benign:train", "starter/toxic:train"]
    reading = options.parse_reading(sets, column, fixed_label, label_map, encoding)
    inputs = {
        "start": options.parse_policy(model, system, model_option).with_weights("Alignment"),
        "examples": options.load_sets(sets, "examples", reading),
        "options": options.parse_options(AlignOptions, option),
    }
    train_into(out, "align", align_model, inputs)
