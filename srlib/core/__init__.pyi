from .paths import InputError, ScanWarning

__all__ = [
    "InputError",
    "ScanWarning",
]
