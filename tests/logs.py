"""What the project itself says in its logs; the libraries say some things once a process, whichever test comes first."""

import pytest


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of this project's loggers, in order."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("discernment")]
