"""A scan in memory and on disk: formats, headers, geometry, patches, intensities."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
