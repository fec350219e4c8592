"""Ray conditioning (Chen et al., ICCV 2023): features get a map of their pixels' camera rays as six further channels.

A synthesis network is given an object that does this. `RayConditioning` appends Plücker maps and `NoConditioning`
appends nothing, so no network asks whether it has rays. Neither is a module: they own no parameters and no buffers.

    bound = conditioning.bind(c)         # once per forward pass
    rays  = bound.channels_for(x)        # [N, num_channels, H, W] or None, for layers that take them beside features
    x     = bound.append_to(x)           # [N, C, H, W] -> [N, C + num_channels, H, W], for others
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camera_utils import CONVENTIONS, LABEL_DIM, ray_map
from torch_utils import misc
from torch_utils.ops import backends


class NoConditioning:
    """Appends nothing, for networks without rays."""

    num_channels = 0
    convention = None

    def bind(self, c: Tensor | None, batch_size: int | None = None) -> NoConditioning:
        return self

    def expand(self, x: Tensor) -> Tensor:
        return x

    def channels_for(self, x: Tensor, sampling_rate: float | None = None) -> None:
        return None

    def append_to(self, x: Tensor, sampling_rate: float | None = None, dtype: torch.dtype | None = None) -> Tensor:
        return x


class RayConditioning:
    """Appends the Plücker map of the label's camera, at the size of the feature map.

    convention: 'pinhole' (the rays of that camera) or 'published' (as the released code); see docs/conventions.md.
    """

    num_channels = 6

    def __init__(self, convention: str = "published"):
        assert convention in CONVENTIONS, f"ray convention {convention!r}, expected one of {sorted(CONVENTIONS)}"
        self.convention = convention

    def bind(self, c: Tensor | None, batch_size: int | None = None) -> BoundRays:
        """Cameras for one forward pass. c: labels [N, 25]; one serves many samples, and one sample many. Gradients
        reach them. Raises ValueError for other shapes.
        """
        if c is None or c.ndim != 2 or c.shape[1] != LABEL_DIM:
            got = "None" if c is None else list(c.shape)
            raise ValueError(f"this network sees camera rays and needs labels c of shape [N, {LABEL_DIM}]; got {got}")
        if batch_size is not None and c.shape[0] != batch_size:
            c = c.expand(misc.common_batch(batch_size, c.shape[0], "cameras"), -1)
        return BoundRays(c, self.convention)


class BoundRays:
    """The ray maps of one batch of cameras. Computes each size once."""

    def __init__(self, c: Tensor, convention: str):
        self.c = c
        self.convention = convention
        self._maps: dict[tuple, Tensor] = {}

    def expand(self, x: Tensor) -> Tensor:
        """x [N, ...] as it is, and [1, ...] repeated for each camera."""
        return x if x.shape[0] == self.c.shape[0] else x.expand(self.c.shape[0], *x.shape[1:])

    def map(self, height: int, width: int, sampling_rate: float | None = None) -> Tensor:
        """[N, 6, height, width] in float32, or in float64 if the labels are. sampling_rate [pixels per image width]:
        see `camera_utils.rays.ray_map`.
        """
        key = (height, width, sampling_rate)
        if key not in self._maps:
            dtype = torch.promote_types(self.c.dtype, torch.float32)
            self._maps[key] = ray_map(self.c, height, width, convention=self.convention, sampling_rate=sampling_rate,
                                      dtype=dtype)
        return self._maps[key]

    def channels_for(self, x: Tensor, sampling_rate: float | None = None) -> Tensor:
        """[N, 6, H, W] for features [N, C, H, W], in their dtype and memory format."""
        rays = self.map(x.shape[2], x.shape[3], sampling_rate).to(x.dtype)
        # Otherwise cat would not keep the format of x.
        channels_last = backends.available() and x.is_contiguous(memory_format=torch.channels_last)
        return rays.contiguous(memory_format=torch.channels_last) if channels_last else rays

    def append_to(self, x: Tensor, sampling_rate: float | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C + 6, H, W], in the memory format of x and in `dtype` (None: that of x)."""
        x = x if dtype is None else x.to(dtype)
        return torch.cat([x, self.channels_for(x, sampling_rate)], dim=1)


def make_conditioning(convention: str | None) -> NoConditioning | RayConditioning:
    """The conditioning with that ray convention; None: no rays."""
    return NoConditioning() if convention is None else RayConditioning(convention)


class SeesRays:
    """Mixed into a generator, before its base: the label is a camera, seen by the synthesis network alone, as rays."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, img_resolution: int, img_channels: int,
                 mapping_kwargs: dict | None = None, rays: str = "published", **synthesis_kwargs: Any):
        """rays: the ray convention, 'pinhole' or 'published'. The other arguments are the base's."""
        super().__init__(z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs,
                         conditioning=RayConditioning(rays), **synthesis_kwargs)
        self.rays = rays

    def _mapped_label_dim(self) -> int:
        return 0                         # identity stays with z
