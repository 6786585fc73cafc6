"""Show what a notebook does at present, and about how long it and all of them still take."""

import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shutil import get_terminal_size

EVERY = 30.0  # seconds between the lines of a log file; a terminal is refreshed every second


class Progress:
    """The line about the notebook that runs; ``weights`` are the seconds that each once took.

    Notebooks write into it as into a file. It shows the last line of that. The time that is left is
    what all that is to come once took, times the pace of this run.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights, self.pace = dict(weights), {"weight": 0.0, "seconds": 0.0}
        self.said, self.terminal = "", sys.stdout.isatty()

    @contextmanager
    def about(self, name: str, title: str) -> Iterator[list[bool]]:
        """Report on a notebook within the block, which appends whether the notebook ran."""
        ran: list[bool] = []
        began, ended, self.said = time.perf_counter(), threading.Event(), ""

        def report() -> None:
            while not ended.wait(1.0 if self.terminal else EVERY):
                seconds = time.perf_counter() - began
                left = self._left(name, seconds)
                self._show(f"{title}: {seconds:.0f} s{left}; {self.said}")

        thread = threading.Thread(target=report, daemon=True)
        self._show(title)
        thread.start()
        try:
            yield ran
        finally:
            ended.set()
            thread.join()
            seconds, weight = time.perf_counter() - began, self.weights.pop(name)
            said = f": {seconds:.0f} s" if any(ran) else ": unchanged, skipped" if ran else ""
            self._show(title + said, end="\n" if self.terminal else "")
        if any(ran):
            self.pace["weight"] += weight
            self.pace["seconds"] += seconds

    def write(self, text: str) -> None:
        """Keep the last line of what the notebook writes."""
        for line in re.split(r"[\r\n]", text):
            self.said = line.strip() or self.said

    def flush(self) -> None:
        """Do nothing; papermill calls it."""

    def _left(self, name: str, seconds: float) -> str:
        """About how long this notebook and all still take; nothing while that is unknown."""
        if not self.pace["weight"]:
            return ""
        pace = self.pace["seconds"] / self.pace["weight"]
        own, every = (
            max(weight * pace - seconds, 0) / 60
            for weight in (self.weights[name], sum(self.weights.values()))
        )
        return f", left about {own:.1f} min, in all {every:.0f} min"

    def _show(self, line: str, end: str = "") -> None:
        width = get_terminal_size().columns - 1
        print(f"\r\033[K{line[:width]}" if self.terminal else f"{line}\n", end=end, flush=True)
