"""Where the random numbers of augmentations come from.

All small draws are made on the CPU: the host then knows every transform without asking the device, so it can leave out what changes
nothing and size margins without a synchronisation. Each draw carries the name of its transform. A source that keys its numbers
by that name gives a transform the same numbers whichever others are on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


class DrawSource:
    """Torch's global generators, in the order of the calls; names are ignored."""

    def uniform(self, name: str, shape: list[int]) -> torch.Tensor:
        """Of 0 .. 1, float32 on the CPU. The first axis of `shape` runs over the samples."""
        return torch.rand(shape, dtype=torch.float32, device="cpu")

    def normal(self, name: str, shape: list[int]) -> torch.Tensor:
        """Standard normal, likewise."""
        return torch.randn(shape, dtype=torch.float32, device="cpu")

    def half_normal(self, name: str, shape: list[int]) -> torch.Tensor:
        """Absolute value of a standard normal number."""
        return self.normal(name, shape).abs()

    def chance(self, name: str, shape: list[int], probability: float) -> torch.Tensor:
        """True with that probability, bool."""
        return self.uniform(name, shape) < probability

    def image_noise(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers like `images`, on their device."""
        return torch.randn_like(images)


class PercentileDraws(DrawSource):
    """For debugging, as StyleGAN2-ADA defines it: each transform is applied to each sample, with the number that its distribution has
    at that percentile (0 .. 1). 'Normal' is erfinv(2 q - 1), which is the quantile divided by sqrt(2). Image noise stays random.
    """

    def __init__(self, percentile: float):
        self.percentile = torch.as_tensor(percentile, dtype=torch.float32, device="cpu")

    def uniform(self, name: str, shape: list[int]) -> torch.Tensor:
        return self.percentile.expand(shape)

    def normal(self, name: str, shape: list[int]) -> torch.Tensor:
        return torch.erfinv(self.percentile * 2 - 1).expand(shape)

    def half_normal(self, name: str, shape: list[int]) -> torch.Tensor:
        return torch.erfinv(self.percentile).expand(shape)

    def chance(self, name: str, shape: list[int], probability: float) -> torch.Tensor:
        # The second of the two rotations would only add to the first.
        return torch.full(shape, not name.startswith("rotate_after"), dtype=torch.bool, device="cpu")


@dataclass(frozen=True)
class Draw:
    """The draws of one transform for a batch of `batch` samples."""

    source: DrawSource
    name: str
    batch: int

    def uniform(self, *shape: int) -> torch.Tensor:
        """[batch, *shape], of 0 .. 1."""
        return self.source.uniform(self.name, [self.batch, *shape])

    def normal(self, *shape: int) -> torch.Tensor:
        """[batch, *shape], standard normal."""
        return self.source.normal(self.name, [self.batch, *shape])

    def half_normal(self, *shape: int) -> torch.Tensor:
        """[batch, *shape], absolute values of standard normal numbers."""
        return self.source.half_normal(self.name, [self.batch, *shape])

    def applies(self, probability: float) -> torch.Tensor:
        """[batch], bool: which samples get the transform."""
        return self.source.chance(f"{self.name}/applies", [self.batch], probability)

    def image_noise(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W], standard normal."""
        return self.source.image_noise(self.name, images)
