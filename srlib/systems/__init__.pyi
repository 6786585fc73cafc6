from .base import Experiment
from .listing import listing
from .registry import EXPERIMENTS, PROFILES, SYSTEMS, from_json, get, numbers, runs
from .trained import Model, find_weights, load_model, super_resolve
from .training import train

__all__ = [
    "EXPERIMENTS",
    "PROFILES",
    "SYSTEMS",
    "Experiment",
    "Model",
    "find_weights",
    "from_json",
    "get",
    "listing",
    "load_model",
    "numbers",
    "runs",
    "super_resolve",
    "train",
]
