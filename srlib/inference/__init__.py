"""Whole scans through a network, in tiles; what to mind in the result."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "isotropic": ["IsotropicSpacing"],
        "prediction": ["AnyFactor", "CoarseToFine", "Request", "SameGrid"],
        "tiles": ["run_tiled"],
    },
)
