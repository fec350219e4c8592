"""Exponential moving average of the generator's weights: what is shown, measured and shared."""

from __future__ import annotations

import copy

import torch

from torch_utils import misc


class GeneratorEMA:
    """Holds `model`, the averaged copy of G. The half-life grows with the run until it is `kimg` thousand images."""

    def __init__(self, G: torch.nn.Module, kimg: float, rampup: float | None = 0.05):
        self.model = copy.deepcopy(G).eval().requires_grad_(False)
        self.kimg = kimg
        self.rampup = rampup                            # Half-life as a share of the images seen so far; None: `kimg` from the start.

    def beta(self, cur_nimg: int, batch_size: int) -> float:
        """How much of the average stays after a step of `batch_size` images."""
        half_life = self.kimg * 1000
        if self.rampup is not None:
            half_life = min(half_life, cur_nimg * self.rampup)
        return 0.5 ** (batch_size / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, G: torch.nn.Module, cur_nimg: int, batch_size: int) -> None:
        """One step. Buffers are copied: they hold constants, or means of their own."""
        beta = self.beta(cur_nimg, batch_size)
        source = dict(misc.named_params_and_buffers(G))
        averaged = [(p, source[name].to(p.dtype)) for name, p in self.model.named_parameters()]
        torch._foreach_lerp_([p for p, _ in averaged], [new for _, new in averaged], 1 - beta)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(source[name])
