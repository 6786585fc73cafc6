"""Networks by name; each maps (batch, channels, X, Y, Z) to (batch, 1, X', Y', Z')."""

from srlib.models.mdcsrn import MDCSRN

MODELS = {"mdcsrn": MDCSRN}
