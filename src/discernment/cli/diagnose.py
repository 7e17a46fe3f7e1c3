"""What `discern diagnose` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from discernment.cli.console import ConsoleReporter, console
from discernment.cli.verbs import parse_options, parse_set, resolve_model
from discernment.diagnosis.diagnose import DiagnoseOptions, Diagnosis
from discernment.files import read_json
from discernment.models.model_spec import ModelSpec
from discernment.prompts.sources import load_sources
from discernment.reporting.diagnosis import similarity_table, write_diagnosis
from discernment.reporting.text import visible
from discernment.runs.diagnosis import diagnose_stage
from discernment.runs.stages import run_into

__all__ = ["diagnose_into"]


def diagnose_into(
    model: ModelSpec, sets: Sequence[str], options: Sequence[str], out: Path, *, redact: bool
) -> None:
    """Diagnose a model, or a method of a run, into `out`, and print what was found."""
    with ConsoleReporter() as reporter:
        inputs: dict[str, Any] = {
            # The kernel's differences drown in the rounding of less.
            "model": resolve_model(model).model_copy(update={"dtype": "float32"}),
            "prompts": load_sources([parse_set(s) for s in sets], "diagnosis"),
            "options": parse_options(DiagnoseOptions, options),
        }
        ran = run_into(out, "diagnose", diagnose_stage, inputs, reporter, {"progress": reporter.progress})
    if not ran:
        console.print("Nothing to do; the diagnosis is there.")
    found = Diagnosis.model_validate(read_json(out / "diagnosis.json"))
    page = write_diagnosis(found, out / "report.html", redact=redact)
    console.print(similarity_table(found))
    if found.unscored:
        console.print(
            f"[yellow]Caution:[/yellow] unscored prompts, which are in no number: {len(found.unscored)}."
        )
    console.print(Text(visible(found.finding)))
    console.print(Text(f"Next: {visible(found.command)}"))
    console.print(Text(f"Report: {page}; numbers: {out / 'diagnosis.json'}"))
