from .batch import run
from .report import write_report
from .viewer import compare

__all__ = [
    "compare",
    "run",
    "write_report",
]
