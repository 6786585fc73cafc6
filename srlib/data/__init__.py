"""Manifests and the scans that they name, degraded pairs, cohorts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layouts": ["write_manifest"],
        "manifest": [
            "Subject",
            "cohort_of",
            "load_mask",
            "load_contrast",
            "read_cohorts",
            "read_manifest",
        ],
        "pairs": ["Pair", "ObservationModel"],
    },
)
