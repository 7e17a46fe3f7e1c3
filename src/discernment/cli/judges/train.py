"""`discern judges train`: a classifier from labelled completions."""

from pathlib import Path
from typing import Annotated

from discernment.cli.console import console, say
from discernment.cli.options import Labels, out_option


def train(
    out: Annotated[Path, out_option("The file for the classifier (safetensors).")],
    labels: Labels = "xstest_human_labels",
) -> None:
    """Train a refusal classifier on labelled completions."""
    from discernment.judges import train_classifier
    from discernment.judges.labelled import read_labelled

    examples = read_labelled(labels)
    with console.status(f"Training on {len(examples)} completions"):
        classifier = train_classifier(examples)
    classifier.save(out)
    say(f"Classifier: {out}, trained on {len(examples)} completions of {labels}.")
    say("Its error on models that it has not seen: `discern judges calibrate --judge classifier`.")
