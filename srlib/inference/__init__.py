"""Run networks over whole scans, in tiles, and warn of doubtful results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "any_factor": ["AnyFactor"],
        "isotropic": ["IsotropicSpacing"],
        "prediction": ["CoarseToFine", "Request", "SameGrid"],
        "tiles": ["run_tiled"],
    },
)
