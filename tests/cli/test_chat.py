"""`discern chat`."""

import io


class Interrupted(io.StringIO):
    """An input at which the user presses Ctrl-C."""

    def readline(self, *args):
        raise KeyboardInterrupt


def test_ctrl_c(discern, files):
    code, _, error = discern("chat", "tiny", stdin=Interrupted())
    assert (code, error) == (130, "discern: interrupted; the same command goes on from here.\n")
