"""Runs and tidy rows, measures, tables, figures, the benchmark."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "quality": ["evaluate", "measure", "statistics"],
        "results": ["measured", "read_metrics", "record_metrics", "summary"],
        "runs": ["train_all"],
    },
)
