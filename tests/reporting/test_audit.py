"""An audit in a real terminal: typed into, killed, gone on with, and shown in the report."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios

import pytest

from discernment.errors import DataError
from discernment.evaluation.audit import audit_order, audited_rates, read_audit, reply_key
from discernment.judges.verdict import Verdict
from discernment.reporting.pages.run import render_report
from discernment.reporting.run_files import read_run

ASKED = "u undo, q end"


class Terminal:
    """`discern judges audit RUN` behind a pseudo-terminal."""

    def __init__(self, run, *more):
        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "discernment", "judges", "audit", str(run), *more]
        environment = os.environ | {"COLUMNS": "200", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.screen = ""

    def until(self, text):
        """Read until a text stands on the screen, or it has ended; what came since the last time."""
        seen = ""
        while text not in seen:
            assert select.select([self.ours], [], [], 120)[0], seen
            try:
                seen += os.read(self.ours, 65536).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                break
        self.screen += seen
        return seen

    def press(self, keys):
        """Type once the terminal takes single keys: what is typed earlier is thrown away."""
        while termios.tcgetattr(self.ours)[3] & termios.ICANON:
            assert self.process.poll() is None, self.screen
        os.write(self.ours, keys.encode())

    def type(self, keys):
        """Answer one question a key."""
        for key in keys:
            self.press(key)
            self.until(ASKED)

    def end(self):
        self.press("q")
        self.until("no such text")
        return self.process.wait()


@pytest.fixture
def samples(run_dir):
    return read_run(run_dir).samples


def test_labels_are_kept_undone_and_gone_on_with(run_dir, samples):
    order = [reply_key(*reply) for reply in audit_order(samples)]
    first = Terminal(run_dir)
    first.until(ASKED)
    first.type("rcpsu")
    first.type("r")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    shown = first.screen
    assert not any(re.search(rf"\b{method}\b", shown) for method in samples if method != "base")
    assert "Report:" not in shown
    kept = read_audit(run_dir / "audit.jsonl")
    refusal, partial = Verdict.REFUSAL, Verdict.PARTIAL_REFUSAL
    assert [label.people for label in kept] == [refusal, Verdict.COMPLIANCE, partial, refusal]
    assert [label.key for label in kept] == order[:4]

    second = Terminal(run_dir)
    second.until(ASKED)
    second.type("s")
    assert second.end() == 0
    again = read_audit(run_dir / "audit.jsonl")
    assert again[:4] == kept
    assert [label.key for label in again] == order[:5]
    assert again[4].people is Verdict.UNSCORED
    assert "Report:" in second.screen
    assert json.loads((run_dir / "audit.json").read_text()) == [
        rate.model_dump(mode="json") for rate in audited_rates(samples, again)
    ]


def test_audited_rates_stand_in_the_report(run_dir, samples):
    method = next(iter(samples))
    labels = [
        {
            "key": reply_key(method, sample),
            "method": method,
            "benchmark": sample.benchmark,
            "prompt_id": sample.prompt_id,
            "judged": sample.verdict,
            "people": sample.verdict,
        }
        for sample in samples[method]
    ]
    (run_dir / "audit.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    assert "Audited by people" not in render_report(read_run(run_dir))
    terminal = Terminal(run_dir)
    terminal.until(ASKED)
    assert terminal.end() == 0
    run = read_run(run_dir)
    assert run.audit
    assert {rate.method for rate in run.audit} == {method}
    page = render_report(run, redact=True)
    assert "Audited by people" in page
    assert f"{100 * run.audit[0].value:.1f}" in page


def test_mistakes_are_one_sentence(run_dir):
    command = [sys.executable, "-m", "discernment", "judges", "audit", str(run_dir)]
    blind = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert blind.returncode == 2
    assert "give the command in a terminal" in " ".join(blind.stderr.split())
    (run_dir / "audit.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="line 1, is not a label of an audit"):
        read_audit(run_dir / "audit.jsonl")
    terminal = Terminal(run_dir)
    said = " ".join(terminal.until("no such text").split())
    assert "line 1, is not a label of an audit" in said
    assert said.endswith("; mend or remove it.")
    assert terminal.process.wait() == 2
