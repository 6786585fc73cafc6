from .quality import consistency, evaluate, measure, statistics
from .results import measured, paired, read_metrics, record_metrics, standing, summary, tested
from .runs import train_all
from .verdict import compare

__all__ = [
    "compare",
    "consistency",
    "evaluate",
    "measure",
    "measured",
    "paired",
    "read_metrics",
    "record_metrics",
    "standing",
    "statistics",
    "summary",
    "tested",
    "train_all",
]
