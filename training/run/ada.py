"""How strongly D's images are augmented: adaptively (ADA; Karras et al. 2020a, section 3), at a fixed strength, or not.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import dnnlib
from torch_utils import training_stats


class NoAugmentation:
    """D sees images as they are."""

    pipe = None
    p = 0.0

    def update(self, step: int, batch_size: int) -> None:
        """Adapts nothing. step: how many steps are done."""

    def get_state(self) -> dict[str, Any]:
        """For set_state() in another process."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass


class FixedStrength:
    """Every augmentation is applied with the probability that the pipe was built with."""

    def __init__(self, pipe: torch.nn.Module):
        self.pipe = pipe

    @property
    def p(self) -> float:
        return float(self.pipe.p)

    def update(self, step: int, batch_size: int) -> None:
        """Adapts nothing."""

    def get_state(self) -> dict[str, Any]:
        return dict(p=self.pipe.p.detach().cpu())

    def set_state(self, state: dict[str, Any]) -> None:
        self.pipe.p.copy_(state["p"])


class AdaptiveStrength(FixedStrength):
    """Moves p so that D's mean sign on real images stays at `target`. p takes at least `kimg` thousand images to rise
    from 0 to 1.
    """

    def __init__(self, pipe: torch.nn.Module, target: float = 0.6, interval: int = 4, kimg: float = 500):
        super().__init__(pipe)
        self.target = target
        self.interval = interval                        # Steps between two moves.
        self.kimg = kimg
        self.signs = training_stats.Collector(regex="Loss/signs/real")

    def update(self, step: int, batch_size: int) -> None:
        if step % self.interval != 0:
            return
        self.signs.update()
        overfit = self.signs["Loss/signs/real"]
        if math.isnan(overfit):
            return
        move = (overfit > self.target) - (overfit < self.target)
        self.pipe.p.copy_((self.pipe.p + move * batch_size * self.interval / (self.kimg * 1000)).clamp(min=0))

    def get_state(self) -> dict[str, Any]:
        return dict(super().get_state(), signs=self.signs.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.signs.set_state(state["signs"])


def make_augmentation(config: dict, device: torch.device) -> NoAugmentation | FixedStrength | AdaptiveStrength:
    """Reads a run's configuration: `augment_kwargs` (None: no augmentation), `augment_p` (where p starts) and, for the
    adaptive kind, `ada_target`, `ada_interval` and `ada_kimg`.
    """
    if config.get("augment_kwargs") is None:
        return NoAugmentation()
    pipe = dnnlib.util.construct_class_by_name(**config["augment_kwargs"]).train().requires_grad_(False).to(device)
    pipe.p.fill_(config.get("augment_p", 0.0))
    if config.get("ada_target") is None:
        return FixedStrength(pipe)
    return AdaptiveStrength(pipe, config["ada_target"], config["ada_interval"], config["ada_kimg"])
