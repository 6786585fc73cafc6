from .network import Network
from .registry import MODELS

__all__ = [
    "MODELS",
    "Network",
]
