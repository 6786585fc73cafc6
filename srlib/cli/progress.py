"""Show what a notebook does at present, and about how long it and all of them still take."""

import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shutil import get_terminal_size

EVERY = 30.0  # seconds between the lines of a log file; a terminal is refreshed every second


class Report:
    """What a notebook does, which writes into it as into a file; the last line of that is kept."""

    def __init__(self, title: str, weight: float) -> None:
        self.title, self.weight, self.said = title, weight, ""
        self.began, self.ran = time.perf_counter(), None  # whether it ran or was skipped

    def write(self, text: str) -> None:
        """Keep the last line of what the notebook writes."""
        for line in re.split(r"[\r\n]", text):
            self.said = line.strip() or self.said

    def flush(self) -> None:
        """Do nothing; papermill calls it."""

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began


class Progress:
    """The lines about the notebooks that run, ``workers`` at the same time.

    ``weights`` are the seconds that each once took. The time that is left is what all that is to
    come once took, times the pace of this run.
    """

    def __init__(self, weights: Mapping[str, float], workers: int = 1) -> None:
        self.weights, self.workers = dict(weights), workers
        self.pace = {"weight": 0.0, "seconds": 0.0}
        self.terminal, self.going = sys.stdout.isatty(), []

    @contextmanager
    def about(self, name: str, title: str) -> Iterator[Report]:
        """Report on a notebook within the block, which sets whether it ``ran``."""
        report, ended = Report(title, self.weights.pop(name)), threading.Event()
        self.going.append(report)

        def refresh():
            while not ended.wait(1.0 if self.terminal else EVERY):
                self._show(self.line() if self.terminal else self.line(report))

        thread = threading.Thread(target=refresh, daemon=True)
        self._show(title)
        thread.start()
        try:
            yield report
        finally:
            ended.set()
            thread.join()
            self.going.remove(report)
            ends = {True: f": {report.seconds:.0f} s", False: ": unchanged, skipped"}
            said = ends.get(report.ran, ": failed")
            self._show(title + said, end="\n" if self.terminal else "")
        if report.ran:
            self.pace["weight"] += report.weight
            self.pace["seconds"] += report.seconds

    def line(self, *reports: Report) -> str:
        """What notebooks do at present, by default all that run."""
        shown = reports or self.going
        return " | ".join(f"{r.title}: {r.seconds:.0f} s{self.left(r)}; {r.said}" for r in shown)

    def left(self, report: Report) -> str:
        """About how long a notebook and all still take; nothing while that is unknown."""
        if not self.pace["weight"]:
            return ""
        pace = self.pace["seconds"] / self.pace["weight"]
        own = max(report.weight * pace - report.seconds, 0) / 60
        going = sum(other.weight * pace - other.seconds for other in self.going)
        every = max(sum(self.weights.values()) * pace + going, 0) / 60 / self.workers
        return f", left about {own:.1f} min, in all {every:.0f} min"

    def _show(self, line, end=""):
        width = get_terminal_size().columns - 1
        print(f"\r\033[K{line[:width]}" if self.terminal else f"{line}\n", end=end, flush=True)
