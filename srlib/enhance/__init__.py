"""A user's scans: jobs, batch, report, viewer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch": ["run"],
        "report": ["write_report"],
        "viewer": ["compare"],
    },
)
