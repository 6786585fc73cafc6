from .quality import consistency, evaluate, measure, statistics
from .results import measured, paired, read_metrics, record_metrics, shown, standing, tested
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
    "shown",
    "standing",
    "statistics",
    "tested",
    "train_all",
]
