"""What geometric and colour transforms have in common: both are affine maps, drawn for each sample, gated, and multiplied up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from training.augment.draws import Draw, DrawSource


@dataclass(frozen=True)
class Transform:
    """A row in the tables of geometry.py and color.py."""

    name: str                                           # Under which it draws.
    multiplier: str                                     # AugmentPipe's argument by which its probability is p times.
    matrix: Callable[..., torch.Tensor]                 # (draw, pipe, ...) -> [N, d + 1, d + 1], homogeneous.
    probability: Callable[[float], float] = float       # p times multiplier -> probability of being applied.


def draw_matrices(table: tuple[Transform, ...], pipe: Any, source: DrawSource, strength: float, batch: int, *context: Any) -> Iterator[torch.Tensor]:
    """For each transform that is switched on, in the order of the table: [batch, d + 1, d + 1], the identity for samples without it."""
    for row in table:
        multiplier = getattr(pipe, row.multiplier)
        if multiplier > 0:
            draw = Draw(source, row.name, batch)
            matrix = row.matrix(draw, pipe, *context)
            applies = draw.applies(row.probability(multiplier * strength))
            yield torch.where(applies[:, None, None], matrix, torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))


def scaling(factors: torch.Tensor) -> torch.Tensor:
    """factors: [N, d] -> [N, d + 1, d + 1]."""
    return affine(torch.diag_embed(factors))


def shift(offset: torch.Tensor) -> torch.Tensor:
    """offset: [N, d] -> [N, d + 1, d + 1]."""
    size = offset.shape[1] + 1
    matrix = torch.eye(size, dtype=torch.float32, device="cpu").repeat(len(offset), 1, 1)
    matrix[:, :-1, -1] = offset
    return matrix


def affine(linear: torch.Tensor) -> torch.Tensor:
    """linear: [N, d, d] -> the same map in homogeneous coordinates, [N, d + 1, d + 1]."""
    matrix = torch.nn.functional.pad(linear, [0, 1, 0, 1])
    matrix[:, -1, -1] = 1
    return matrix


def change_some(images: torch.Tensor, changes: torch.Tensor, change: Callable[..., torch.Tensor], parameters: torch.Tensor) -> torch.Tensor:
    """images: [N, C, H, W]. Those where `changes` ([N] bool, on the CPU) pass through change(images, parameters); the others stay as they are.

    parameters: [N, ...] on the CPU.
    """
    rows = changes.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return change(images, parameters)
    index = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, index, change(images.index_select(0, index), parameters[rows]))
