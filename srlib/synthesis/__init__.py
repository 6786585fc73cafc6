"""Label map in, synthetic scan out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "settings": ["Acquisition", "Generation"],
        "simulation": ["apply", "draw", "encode"],
        "priors": ["read_classes", "read_priors"],
    },
)
