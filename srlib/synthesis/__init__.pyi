from .priors import read_classes, read_priors
from .settings import Acquisition, Generation
from .simulation import apply, draw, encode

__all__ = [
    "Acquisition",
    "Generation",
    "apply",
    "draw",
    "encode",
    "read_classes",
    "read_priors",
]
