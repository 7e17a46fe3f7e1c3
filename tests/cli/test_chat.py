"""`discern chat`."""

import io


class Interrupted(io.StringIO):
    """An input at which the user presses Ctrl-C."""

    def readline(self, *args):
        raise KeyboardInterrupt


def test_a_prompt_that_is_too_long_is_named_and_the_next_one_answered(discern, files):
    code, shown, error = discern("chat", "tiny", stdin=io.StringIO("word " * 400 + "\nHi\n\n"))
    assert (code, error) == (0, "")
    assert f"The prompt {('word ' * 400)[:60]!r} has" in shown
    assert "with a reply of 128, and tiny can read 256; say less or lower the cap." in shown
    assert shown.count("rejection probability") == 1


def test_bytes_that_are_no_text_of_the_terminal(discern, files):
    code, shown, error = discern("chat", "tiny", stdin=io.StringIO("caf\udce9\n\n"))
    assert (code, error, shown.count("rejection probability")) == (0, "", 1)


def test_ctrl_c(discern, files):
    code, _, error = discern("chat", "tiny", stdin=Interrupted())
    assert (code, error) == (130, "discern: interrupted; the same command goes on from here.\n")
