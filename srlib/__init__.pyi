from . import systems
from .data.manifest import read_manifest
from .degradations.tasks import degrade
from .evaluation.quality import measure
from .scans.formats import load_scan
from .scans.patches import extract, stitch
from .scans.volume import save_scan
from .systems.trained import load_model, super_resolve
from .systems.training import train
from .training.examples import PatchDataset
from .training.synthetic import SyntheticDataset

__version__: str
__all__ = [
    "PatchDataset",
    "SyntheticDataset",
    "degrade",
    "extract",
    "load_model",
    "load_scan",
    "measure",
    "read_manifest",
    "save_scan",
    "stitch",
    "super_resolve",
    "systems",
    "train",
]
