from .examples import PatchDataset, ScanPatches
from .games import CrossEntropy, LeastSquares, Supervised, Training, Wasserstein
from .synthetic import RandomDegradations, SyntheticDataset, SyntheticScans

__all__ = [
    "CrossEntropy",
    "LeastSquares",
    "PatchDataset",
    "RandomDegradations",
    "ScanPatches",
    "Supervised",
    "SyntheticDataset",
    "SyntheticScans",
    "Training",
    "Wasserstein",
]
