"""Replications of published medical-image super-resolution systems, side by side.

Scans           load_scan, save_scan, read_manifest
Degradations    degrade
Patches         extract, stitch, PatchDataset, SyntheticDataset
Networks        systems, train, load_model, super_resolve
Quality         measure

Each wing hands on its public names: srlib.scans, srlib.degradations, srlib.models,
srlib.synthesis, srlib.data, srlib.training, srlib.inference, srlib.systems, srlib.evaluation,
srlib.enhance.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
