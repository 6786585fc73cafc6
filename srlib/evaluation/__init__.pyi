from .quality import consistency, evaluate, measure, statistics
from .results import measured, paired, read_metrics, record_metrics, summary
from .runs import train_all

__all__ = [
    "consistency",
    "evaluate",
    "measure",
    "measured",
    "paired",
    "read_metrics",
    "record_metrics",
    "statistics",
    "summary",
    "train_all",
]
