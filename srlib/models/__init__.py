"""Networks, a file per system, critics included; state dicts to and from safetensors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
