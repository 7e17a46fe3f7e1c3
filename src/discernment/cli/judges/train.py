"""`discern judges train`: a judge from labelled completions."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from discernment.cli.console import notice, prepare_process, say
from discernment.cli.options import LabelSets, check_kept, out_option, parse_policy
from discernment.errors import RecipeError


class Kind(StrEnum):
    """What learns."""

    ENCODER = "encoder"
    CLASSIFIER = "classifier"


def train(
    out: Annotated[
        Path | None,
        out_option(
            "The encoder's folder, or the classifier's file; the encoder's is in the cache unless given."
        ),
    ] = None,
    labels: LabelSets = None,
    kind: Annotated[
        Kind, typer.Option(help="encoder: reads; minutes. classifier: bags of words; seconds.")
    ] = (Kind.ENCODER),
    encoder: Annotated[
        str | None, typer.Option(help="Hub id, folder or wheel://PACKAGE of the encoder to start from.")
    ] = None,
) -> None:
    """Train a judge on labelled completions: those that come along, people's where they are at hand, your own."""
    prepare_process()
    from discernment.judges import train_classifier
    from discernment.judges.encoder import MINILM, train_encoder, trained_encoder
    from discernment.judges.labelled import PUBLIC, STARTER, has_public_labels, read_labelled
    from discernment.ranks import check_alone

    check_alone("The training of a judge")
    sources = labels or ([STARTER, PUBLIC] if has_public_labels() else [STARTER])
    if out is not None:
        check_kept([out], sources)
    if kind is Kind.CLASSIFIER:
        if out is None or out.is_dir():
            raise RecipeError("The classifier needs `--out FILE.safetensors`.")
        if encoder is not None:
            raise RecipeError("`--encoder` is for `--kind encoder`; leave it out.")
    examples = [example for source in sources for example in read_labelled(source)]
    notice(f"Learning from {len(examples)} completions of {' and '.join(sources)}.")
    if kind is Kind.CLASSIFIER and out is not None:
        train_classifier(examples).save(out)
        say(f"Classifier: {out}; `judge: {{kind: classifier, path: {out}}}` takes it.")
    else:
        folder = out or trained_encoder()
        train_encoder(examples, folder, model=parse_policy(encoder, None, None).model if encoder else MINILM)
        taken = "encoder" if out is None else f"{{kind: encoder, path: {out}}}"
        say(f"Encoder: {folder}; `judge: {taken}` takes it.")
    notice(f"Its error on models that it has not seen: `discern judges calibrate --judge {kind}`.")
