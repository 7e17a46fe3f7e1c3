"""Where what is made once for all runs is kept: converted models, trained judges."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`DISCERNMENT_CACHE`, or `discernment` in the user's cache folder."""
    if named := os.environ.get("DISCERNMENT_CACHE"):
        return Path(named).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))  # empty or relative, it counts for nothing
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "discernment"
