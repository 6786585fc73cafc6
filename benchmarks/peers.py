"""Peers that no package offers, as anybody would write them: a network, a step, a patch loop."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import fft
from torch import Tensor, nn
from torch.nn import functional


class Unit(nn.Module):
    """Batch norm, ELU, convolution, concatenation."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(channels)
        self.conv = nn.Conv3d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(functional.elu(self.norm(x)))], 1)


class Plain(nn.Module):
    """mDCSRN word by word (Chen et al., MICCAI 2018, Fig. 1), with the names of our parameters."""

    def __init__(self, k: int = 16, blocks: int = 4, units: int = 4) -> None:
        super().__init__()
        base, dense = 2 * k, (2 + units) * k
        self.first = nn.Conv3d(1, base, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Unit(base + i * k, k) for i in range(units))) for _ in range(blocks)
        )
        inputs = [base + i * dense for i in range(1, blocks + 1)]
        self.compress = nn.ModuleList(nn.Conv3d(n, base, 1, bias=False) for n in inputs[:-1])
        self.last = nn.Conv3d(inputs[-1], 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x)
        features = [out]
        for block, compress in zip(self.blocks, [*self.compress, self.last], strict=True):
            features.append(block(out))
            out = compress(torch.cat(features, 1))
        return out


def plain_step(network: nn.Module, optimizer: torch.optim.Optimizer, lr: Tensor, hr: Tensor):
    """One step as any training loop has it."""
    optimizer.zero_grad()
    functional.l1_loss(network(lr), hr).backward()
    optimizer.step()


def plain_patches(files: Sequence[Path], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """k-space pairs by a plain loop: load, halve the in-plane spectrum, scale to [0, 1], cut."""
    for file in files:
        hr = nib.load(file).get_fdata(dtype=np.float32)
        spectrum = fft.fftshift(fft.fftn(hr, axes=(1, 2)), (1, 2))
        kept = np.zeros_like(spectrum)
        middle = (slice(None), *(slice(n // 4, -(n // 4)) for n in hr.shape[1:]))
        kept[middle] = spectrum[middle]
        lr = np.abs(fft.ifftn(fft.ifftshift(kept, (1, 2)), axes=(1, 2)))
        low, high = lr.min(), lr.max()
        lr, hr = (lr - low) / (high - low), (hr - low) / (high - low)
        for at in itertools.product(*(range(0, n - size + 1, size) for n in hr.shape)):
            cut = tuple(slice(start, start + size) for start in at)
            yield lr[cut][None].copy(), hr[cut][None].copy()
