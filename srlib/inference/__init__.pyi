from .any_factor import AnyFactor
from .isotropic import IsotropicSpacing
from .prediction import CoarseToFine, Request, SameGrid
from .tiles import run_tiled

__all__ = [
    "AnyFactor",
    "CoarseToFine",
    "IsotropicSpacing",
    "Request",
    "SameGrid",
    "run_tiled",
]
