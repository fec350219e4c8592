"""How `up`, `down`, `padding` and filter sizes may be written, and what they come down to."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """A factor for both axes or (x, y) -> (x, y)."""
    x, y = (value, value) if isinstance(value, int) else value
    assert isinstance(x, int) and isinstance(y, int) and x >= 1 and y >= 1, f"{name} {value!r}, expected whole numbers from 1 on"
    return x, y


def edges(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """One number, (x, y) or (left, right, top, bottom) -> (left, right, top, bottom). Negative numbers crop."""
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 2:
        x, y = padding
        return x, x, y, y
    assert len(padding) == 4, f"padding {padding!r}, expected a number, (x, y) or (left, right, top, bottom)"
    left, right, top, bottom = padding
    return left, right, top, bottom


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter: None is a single tap, a vector [n] stands for its outer product with itself."""
    if f is None:
        return 1, 1
    assert f.ndim in (1, 2) and f.numel() > 0, f"filter of shape {list(f.shape)}, expected [n] or [height, width]"
    return f.shape[-1], f.shape[0]


def output_size(size: int, up: int, down: int, before: int, after: int, taps: int) -> int:
    """Samples along one axis that come out of `size` samples."""
    return (size * up + before + after - taps) // down + 1
