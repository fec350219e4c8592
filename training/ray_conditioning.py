"""Ray conditioning (Chen et al., ICCV 2023): features get a map of their pixels' camera rays as six further channels.

The mechanism is one object that a synthesis network is given. `RayConditioning` appends Plücker maps, `NoConditioning` is
its null version, so no network asks whether it has rays. Neither is a module: they own no parameter and no buffer.

    bound = conditioning.bind(c)         # once per forward pass
    rays  = bound.channels_for(x)        # [N, num_channels, H, W], for layers that take them beside their features; None without rays
    x     = bound.append_to(x)           # [N, C, H, W] -> [N, C + num_channels, H, W], for others
"""

from __future__ import annotations

import torch

from camera_utils import CONVENTIONS, LABEL_DIM, ray_map
from torch_utils import misc
from torch_utils.ops import backends


class NoConditioning:
    """A network without a camera: appends nothing."""

    num_channels = 0
    convention = None

    def bind(self, c: torch.Tensor | None, batch_size: int | None = None) -> NoConditioning:
        return self

    def expand(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def channels_for(self, x: torch.Tensor, sampling_rate: float | None = None) -> None:
        return None

    def append_to(self, x: torch.Tensor, sampling_rate: float | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        return x


class RayConditioning:
    """Appends the Plücker map of the label's camera, at the size of the feature map.

    convention: 'pinhole' (the rays of that camera) or 'published' (what the released code computes); docs/conventions.md.
    """

    num_channels = 6

    def __init__(self, convention: str = "published"):
        assert convention in CONVENTIONS, f"ray convention {convention!r}, expected one of {sorted(CONVENTIONS)}"
        self.convention = convention

    def bind(self, c: torch.Tensor | None, batch_size: int | None = None) -> BoundRays:
        """Cameras for one forward pass. c: labels [N, 25], or [1, 25] for a whole batch; many for a batch of one. Gradients reach them."""
        if c is None or c.ndim != 2 or c.shape[1] != LABEL_DIM:
            got = "None" if c is None else list(c.shape)
            raise ValueError(f"this network sees camera rays and needs labels c of shape [N, {LABEL_DIM}]; got {got}")
        if batch_size is not None and c.shape[0] != batch_size:
            c = c.expand(misc.common_batch(batch_size, c.shape[0], "cameras"), -1)
        return BoundRays(c, self.convention)


class BoundRays:
    """The ray maps of one batch of cameras. Every size is computed once."""

    def __init__(self, c: torch.Tensor, convention: str):
        self.c = c
        self.convention = convention
        self._maps: dict[tuple, torch.Tensor] = {}

    def expand(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, ...], or [1, ...] for all cameras, with a sample for each camera."""
        return x if x.shape[0] == self.c.shape[0] else x.expand(self.c.shape[0], *x.shape[1:])

    def map(self, height: int, width: int, sampling_rate: float | None = None) -> torch.Tensor:
        """[N, 6, height, width] in float32 (float64 for such labels). `sampling_rate` [pixels per image width]: see `camera_utils.rays.ray_map`."""
        key = (height, width, sampling_rate)
        if key not in self._maps:
            self._maps[key] = ray_map(self.c, height, width, convention=self.convention, sampling_rate=sampling_rate,
                                      dtype=torch.promote_types(self.c.dtype, torch.float32))
        return self._maps[key]

    def channels_for(self, x: torch.Tensor, sampling_rate: float | None = None) -> torch.Tensor:
        """[N, 6, H, W] for features [N, C, H, W], in their dtype and memory format."""
        rays = self.map(x.shape[2], x.shape[3], sampling_rate).to(x.dtype)
        # Else cat would give up the format of x.
        channels_last = backends.available() and x.is_contiguous(memory_format=torch.channels_last)
        return rays.contiguous(memory_format=torch.channels_last) if channels_last else rays

    def append_to(self, x: torch.Tensor, sampling_rate: float | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[N, C, H, W] -> [N, C + 6, H, W] in the memory format of x, and in `dtype` (None: its own)."""
        x = x if dtype is None else x.to(dtype)
        return torch.cat([x, self.channels_for(x, sampling_rate)], dim=1)


def make_conditioning(convention: str | None) -> NoConditioning | RayConditioning:
    """The conditioning with that ray convention; None: no rays."""
    return NoConditioning() if convention is None else RayConditioning(convention)
