"""Install a tool in an environment of its own, and call it with files as a process of its own."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from srlib.core.processes import cores

Factor = Sequence[float]
PATIENCE = 10  # times its budget of processor time that a tool may take by the clock
# limits processor time; a process counts its parent's memory until it begins to run, and this is
# a small one
LAUNCHER = """
import pathlib, resource, subprocess, sys
cost, budget, *words = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CPU, (int(budget), resource.RLIM_INFINITY))
code = subprocess.call(words)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6  # kB on Linux
pathlib.Path(cost).write_text(f"{seconds} {memory}")
sys.exit(code)
"""


class Failed(Exception):
    """A tool cannot be installed, failed, or ran out of its time; the message says which."""


@dataclass(frozen=True)
class Tool:
    """A super-resolution tool: where it comes from, how it is called and what its output needs.

    ``command`` and ``pip`` are split as by a shell; braces name ``home`` (the tool's environment),
    ``python`` (its interpreter, ours where ``pip`` is empty), ``callers`` (the folder of scripts
    that call it), ``given`` and ``made`` (files), ``folder`` (of ``made``), ``x``, ``y``, ``z`` (the
    factor) and ``kernel`` (that of the degradation, as ``srlib enhance`` takes it).
    """

    version: str
    licence: str
    command: str
    takes: Callable[[Factor], bool]  # whether the tool is made for a factor
    pip: tuple[str, ...] = ()  # what pip is asked for, in turn
    makes: str = "made.nii.gz"  # the output's name or pattern in the folder
    budget: float = 600  # seconds of processor time, then the tool is ended
    slow: bool = False  # runs on few cells
    least: int = 0  # voxels per axis of the scan below which it is not run
    align: str = ""  # how the output's grid really lies in the input's; "": as its file says
    rescale: bool = False  # whether it changes the units of intensities
    notes: str = ""


def install(name: str, tool: Tool, folder: Path) -> dict[str, str]:
    """The places that a tool's command needs; its environment is made where it is missing.

    Raises Failed with the reason of pip.
    """
    home = folder / name
    places = {"home": str(home), "callers": str(Path(__file__).with_name("callers"))}
    python = home / "bin" / "python" if tool.pip else Path(sys.executable)
    ready = home / "ready"
    wanted = "\n".join(tool.pip)
    if tool.pip and not (ready.exists() and ready.read_text(encoding="utf-8") == wanted):
        print(f"{name}: installing", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", home], check=True)
        for words in tool.pip:
            command = [sys.executable, "-m", "pip", "--python", python, *_words(words, places)]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
            if done.returncode:
                raise Failed(f"cannot be installed: {_reason(done.stderr)}")
        ready.write_text(wanted, encoding="utf-8")
    return {**places, "python": str(python)}


def _words(text: str, places: dict[str, str]) -> list[str]:
    """A command's words, with their braces filled."""
    return [word.format_map(places) for word in shlex.split(text)]


def _reason(log: str) -> str:
    """The line of a log that says why: the last error, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no reason was given"])[-1][:200]


def call(command: str, places: dict[str, str], budget: float) -> tuple[float, float]:
    """Run a command; its seconds of processor time and the peak memory of its largest process in GB.

    It runs on the CPU, by as many threads as OMP_NUM_THREADS says, in its own folder. Raises Failed
    when it fails, or when it is ended: after ``budget`` seconds of processor time, or after
    PATIENCE times as many by the clock.
    """
    folder = Path(places["folder"])
    cost = folder / "cost.txt"
    with open(folder / "log.txt", "wb") as log:
        words = [sys.executable, "-c", LAUNCHER, cost, f"{budget:.0f}", *_words(command, places)]
        how = {"stdout": log, "stderr": log, "cwd": folder, "start_new_session": True}
        process = subprocess.Popen(words, env=_environment(), **how)
        try:
            code = process.wait(PATIENCE * budget)
        except subprocess.TimeoutExpired as err:
            raise Failed(f"ended after {PATIENCE * budget:g} s by the clock") from err
        finally:  # also what a tool leaves behind
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds, memory = map(float, cost.read_text(encoding="utf-8").split())
    if code and seconds >= 0.9 * budget:
        raise Failed(f"ended after its budget of {budget:g} s")
    if code:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        raise Failed(f"failed: {_reason(text)}")
    return seconds, memory


def threads() -> str:
    """The threads that a tool may use."""
    return os.environ.get("OMP_NUM_THREADS") or str(cores())


def _environment() -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**os.environ, **dict.fromkeys(names, threads()), "CUDA_VISIBLE_DEVICES": ""}
