from .layouts import write_manifest
from .manifest import Subject, cohort_of, load_contrast, load_mask, read_cohorts, read_manifest
from .pairs import ObservationModel, Pair

__all__ = [
    "ObservationModel",
    "Pair",
    "Subject",
    "cohort_of",
    "load_contrast",
    "load_mask",
    "read_cohorts",
    "read_manifest",
    "write_manifest",
]
