"""Training examples, losses, games, the loop and its checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "examples": ["PatchDataset", "ScanPatches"],
        "games": ["CrossEntropy", "LeastSquares", "Supervised", "Training", "Wasserstein"],
        "synthetic": ["RandomDegradations", "SyntheticDataset", "SyntheticScans"],
    },
)
