"""High-resolution scan in, low-resolution scan out; the named tasks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "resolution": ["DEGRADATIONS"],
        "tasks": ["TASKS", "degradation_of", "degrade"],
    },
)
