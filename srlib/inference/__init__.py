"""Run networks over whole scans, in tiles, and warn of doubtful results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
