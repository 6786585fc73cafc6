from .resolution import DEGRADATIONS
from .tasks import TASKS, degradation_of, degrade

__all__ = [
    "DEGRADATIONS",
    "TASKS",
    "degradation_of",
    "degrade",
]
