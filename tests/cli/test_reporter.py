"""How far a run is: by what its stages took, in lines or in bars."""

import pytest

from discernment.cli.forecast import Forecast
from terminal import ESCAPES, in_terminal

RUN = """
from discernment.cli.console import console, notices
from discernment.cli.reporter import ConsoleReporter
with ConsoleReporter() as reporter:
    {first}
    reporter.stage("align", "stl", reused=True)
    reporter.stage("evaluate", "stl", reused=False)
    for done in range(1, 5):
        reporter.progress("replies", done, 4)
    reporter.stage("evaluate", "dcr", reused=False)
    reporter.progress("methods done", 1, 2)
    notices.print("a line")
console.print("the result")
"""


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_stages_ahead_take_what_those_of_their_name_took():
    clock = Clock()
    forecast = Forecast(["align", "evaluate", "align", "evaluate", "kernel"], clock)
    forecast.begin("align", reused=False)
    assert forecast.remaining is None
    clock.seconds += 10
    forecast.begin("evaluate", reused=False)
    assert forecast.remaining == 10 + 10 + 10 + 10  # nothing but 10 seconds is known
    clock.seconds += 4
    assert forecast.remaining == 6 + 10 + 10 + 10
    forecast.begin("align", reused=False)
    assert forecast.remaining == 10 + 4 + 7
    clock.seconds += 20  # longer than it should
    assert forecast.remaining == 0 + 4 + 7
    forecast.begin("evaluate", reused=True)
    assert forecast.remaining == (10 + 20 + 4) / 3
    forecast.begin("kernel", reused=False)
    forecast.begin("one that nobody planned", reused=False)
    assert forecast.remaining is None


def test_what_was_there_already_says_nothing():
    forecast = Forecast(["align", "evaluate"], Clock())
    forecast.begin("align", reused=True)
    assert forecast.remaining is None


def test_a_terminal_shows_the_whole_run():
    code, written = in_terminal(code=RUN.format(first='reporter.plan(["align", "evaluate"] * 2)'))
    assert code == 0
    text = ESCAPES.sub("", written)
    assert "all stages" in text
    assert "2/4 about 0 s left" in text
    assert "\x1b[2K" in written
    assert text.splitlines()[-1].endswith("the result")


def test_bars_keep_away_from_the_lines_of_other_processes():
    code, written = in_terminal(code=RUN.format(first='reporter.of_task("try dcr")'))
    assert code == 0
    assert "\x1b[2K" not in written
    assert "  methods done: 1 of 2, about 0 s left\n" in ESCAPES.sub("", written)


@pytest.mark.parametrize("planned", [True, False])
def test_a_file_gets_lines(capsys, planned):
    exec(RUN.format(first='reporter.plan(["align", "evaluate"] * 2)' if planned else "pass"))
    written = capsys.readouterr()
    assert written.out == "the result\n"
    assert "stl align (done before)" in written.err
    assert ("dcr evaluate ... (stage 3 of 4, about 0 s left)" in written.err) == planned
    assert "  replies: 4 of 4" in written.err
