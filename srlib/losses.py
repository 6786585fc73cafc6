"""Training losses by name; each maps (sr, hr) batches to a scalar, mean-reduced."""

from torch.nn import functional

LOSSES = {"l1": functional.l1_loss, "l2": functional.mse_loss}
