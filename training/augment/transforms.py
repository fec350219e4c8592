"""What all transforms share: where their random numbers come from, the rows of their tables, affine maps, borders.

All small draws are made on the CPU: the host then knows every transform without asking the device, so it can leave out
transforms that change nothing, and choose margins, without a synchronisation. Each draw has the name of its transform.
A source that keys its numbers by that name gives a transform the same numbers whichever others are on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class DrawSource:
    """Draws from torch's global generators, in the order of the calls. Ignores names."""

    def uniform(self, name: str, shape: list[int]) -> Tensor:
        """Numbers in 0 .. 1, float32 on the CPU. The first axis of `shape` runs over the samples."""
        return torch.rand(shape, dtype=torch.float32, device="cpu")

    def normal(self, name: str, shape: list[int]) -> Tensor:
        """Standard normal numbers, likewise."""
        return torch.randn(shape, dtype=torch.float32, device="cpu")

    def half_normal(self, name: str, shape: list[int]) -> Tensor:
        """Absolute values of standard normal numbers."""
        return self.normal(name, shape).abs()

    def chance(self, name: str, shape: list[int], probability: float) -> Tensor:
        """bool, True with that probability."""
        return self.uniform(name, shape) < probability

    def image_noise(self, name: str, images: Tensor) -> Tensor:
        """Standard normal numbers like `images`, on their device."""
        return torch.randn_like(images)


class PercentileDraws(DrawSource):
    """For debugging, as StyleGAN2-ADA defines it: applies each transform to each sample, with the number at that
    percentile (0 .. 1) of its distribution. Normal numbers are erfinv(2 q - 1), the quantile divided by sqrt(2). Image
    noise stays random.
    """

    def __init__(self, percentile: float):
        self.percentile = torch.as_tensor(percentile, dtype=torch.float32, device="cpu")

    def uniform(self, name: str, shape: list[int]) -> Tensor:
        return self.percentile.expand(shape)

    def normal(self, name: str, shape: list[int]) -> Tensor:
        return torch.erfinv(self.percentile * 2 - 1).expand(shape)

    def half_normal(self, name: str, shape: list[int]) -> Tensor:
        return torch.erfinv(self.percentile).expand(shape)

    def chance(self, name: str, shape: list[int], probability: float) -> Tensor:
        # The second of the two rotations would only add to the first.
        return torch.full(shape, not name.startswith("rotate_after"), dtype=torch.bool, device="cpu")


@dataclass(frozen=True)
class Draw:
    """The draws of one transform for a batch of `batch` samples."""

    source: DrawSource
    name: str
    batch: int

    def uniform(self, *shape: int) -> Tensor:
        """[batch, *shape], in 0 .. 1."""
        return self.source.uniform(self.name, [self.batch, *shape])

    def normal(self, *shape: int) -> Tensor:
        """[batch, *shape], standard normal."""
        return self.source.normal(self.name, [self.batch, *shape])

    def half_normal(self, *shape: int) -> Tensor:
        """[batch, *shape], absolute values of standard normal numbers."""
        return self.source.half_normal(self.name, [self.batch, *shape])

    def applies(self, probability: float) -> Tensor:
        """[batch], bool: the samples that get the transform."""
        return self.source.chance(f"{self.name}/applies", [self.batch], probability)

    def image_noise(self, images: Tensor) -> Tensor:
        """[N, C, H, W], standard normal."""
        return self.source.image_noise(self.name, images)


# ---------------------------------------------------------------------------------------------------------------------
# Geometric and colour transforms are affine maps, drawn per sample, applied with some probability, and multiplied up.

@dataclass(frozen=True)
class Transform:
    """A row in the tables of geometry.py and color.py."""

    name: str                                           # Of its draws.
    multiplier: str                                     # AugmentPipe's argument that multiplies p.
    matrix: Callable[..., Tensor]                       # (draw, pipe, ...) -> [N, d + 1, d + 1], homogeneous.
    probability: Callable[[float], float] = float       # p times multiplier -> probability of being applied.


def draw_matrices(table: tuple[Transform, ...], pipe: Any, source: DrawSource, strength: float, batch: int,
                  *context: Any) -> Iterator[Tensor]:
    """For each transform that is on, in the order of the table: [batch, d + 1, d + 1], the identity for samples without
    it.
    """
    for row in table:
        multiplier = getattr(pipe, row.multiplier)
        if multiplier > 0:
            draw = Draw(source, row.name, batch)
            matrix = row.matrix(draw, pipe, *context)
            applies = draw.applies(row.probability(multiplier * strength))
            identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            yield torch.where(applies[:, None, None], matrix, identity)


def scaling(factors: Tensor) -> Tensor:
    """factors: [N, d] -> [N, d + 1, d + 1]."""
    return affine(torch.diag_embed(factors))


def shift(offset: Tensor) -> Tensor:
    """offset: [N, d] -> [N, d + 1, d + 1]."""
    size = offset.shape[1] + 1
    matrix = torch.eye(size, dtype=torch.float32, device="cpu").repeat(len(offset), 1, 1)
    matrix[:, :-1, -1] = offset
    return matrix


def affine(linear: Tensor) -> Tensor:
    """linear: [N, d, d] -> the same map in homogeneous coordinates, [N, d + 1, d + 1]."""
    matrix = torch.nn.functional.pad(linear, [0, 1, 0, 1])
    matrix[:, -1, -1] = 1
    return matrix


def change_some(images: Tensor, changes: Tensor, change: Callable[..., Tensor], parameters: Tensor) -> Tensor:
    """Passes the images that `changes` selects through change(images, parameters). The others stay as they are.

    images: [N, C, H, W]; changes: [N] bool on the CPU; parameters: [N, ...] on the CPU.
    """
    rows = changes.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return change(images, parameters)
    index = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, index, change(images.index_select(0, index), parameters[rows]))


def pad_reflected(images: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """images: [N, C, H, W] -> [N, C, H + top + bottom, W + left + right], mirrored at the outermost pixels, several
    times if the border is wider than the image.
    """
    assert min(images.shape[2:]) >= 2, f"images of {list(images.shape)}, expected 2 x 2 pixels or more"
    wanted = [left, right, top, bottom]
    while any(wanted):
        height, width = images.shape[2:]
        step = [min(side, size - 1) for side, size in zip(wanted, (width, width, height, height))]
        images = torch.nn.functional.pad(images, step, mode="reflect")
        wanted = [side - done for side, done in zip(wanted, step)]
    return images
