from .formats import load_scan
from .patches import extract, stitch
from .space import resample_to
from .volume import Volume, save_scan

__all__ = [
    "Volume",
    "extract",
    "load_scan",
    "resample_to",
    "save_scan",
    "stitch",
]
