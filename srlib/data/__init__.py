"""Manifests and the scans that they name, degraded pairs, cohorts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
