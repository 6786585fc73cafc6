"""Compose experiments, a file per paper; train and use them by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Experiment"],
        "registry": [
            "BUDGET",
            "EXPERIMENTS",
            "PROFILES",
            "SYSTEMS",
            "from_json",
            "get",
            "numbers",
            "runs",
        ],
        "trained": ["Model", "find_weights", "load_model", "super_resolve"],
        "training": ["train"],
    },
)
