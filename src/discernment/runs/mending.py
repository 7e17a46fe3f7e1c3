"""What is wrong with a damaged file of a run, and what to do about it, in words."""

import shlex
from pathlib import Path

from discernment.errors import DiscernmentError


def what_is_wrong(error: DiscernmentError) -> str:
    """The beginning of a message about a file, to say what to do where the file is a run's and not the user's."""
    return str(error).removesuffix(".").removesuffix("; save the file as UTF-8")


def how_to_mend(directory: Path) -> str:
    """What to do about a damaged file of a run, for the end of a sentence."""
    written = directory / "recipe.yaml"
    command = shlex.join(
        ["discern", "run", *([str(written), "--out", str(directory)] if written.is_file() else [])]
    )
    return f"give `{command}` again, which makes it anew from what is whole"
