"""A scan in memory and on disk: formats, headers, geometry, patches, intensities."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "formats": ["load_scan"],
        "patches": ["extract", "stitch"],
        "space": ["resample_to"],
        "volume": ["Volume", "save_scan"],
    },
)
