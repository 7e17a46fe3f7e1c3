"""A reporter that remembers what it heard."""

from discernment.runs.stages import Quiet


class Stop(Quiet):
    """Hears every event, and ends the run at the one called `at`, as Ctrl-C would."""

    def __init__(self, at=None):
        self.at = at
        self.events = []

    def hear(self, event):
        self.events.append(event)
        if event == self.at:
            raise KeyboardInterrupt

    def stage(self, name, owner, *, reused):
        self.hear((name, owner, reused))

    def progress(self, what, done, of):
        self.hear((what, done, sum(event[0] == "evaluate" for event in self.events)))
