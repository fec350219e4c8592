"""What all generators share: latents and labels go to a mapping network, its result (and cameras) to a synthesis network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.ray_conditioning import RayConditioning


class BaseGenerator(nn.Module):
    """Latent z and label c -> image. A family sets the classes of its two halves; the label goes to the mapping network."""

    mapping_class: type[nn.Module]
    synthesis_class: type[nn.Module]

    def __init__(self,
        z_dim:              int,
        c_dim:              int,                        # 0: no label.
        w_dim:              int,
        img_resolution:     int,
        img_channels:       int,
        mapping_kwargs:     dict | None = None,         # For the mapping network.
        **synthesis_kwargs: Any,                        # For the synthesis network.
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = self.synthesis_class(w_dim=w_dim, img_resolution=img_resolution, img_channels=img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = self.mapping_class(z_dim=z_dim, c_dim=self._mapped_label_dim(), w_dim=w_dim, num_ws=self.num_ws, **(mapping_kwargs or {}))

    def _mapped_label_dim(self) -> int:
        """How much of the label the mapping network sees."""
        return self.c_dim

    def forward(self, z: torch.Tensor, c: torch.Tensor | None, truncation_psi: float = 1, truncation_cutoff: int | None = None,
                update_emas: bool = False, **synthesis_kwargs: Any) -> torch.Tensor:
        """z: [N, z_dim], c: [N, c_dim]; one of either serves many of the other. Returns images [N, img_channels, H, W]."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff, update_emas=update_emas)
        return self.synthesis(ws, c, update_emas=update_emas, **synthesis_kwargs)


class SeesRays:
    """Mixed into a generator, before its base: the label is a camera, and goes to the synthesis network as rays alone."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, img_resolution: int, img_channels: int, mapping_kwargs: dict | None = None,
                 rays: str = "published", **synthesis_kwargs: Any):
        """`rays` is the ray convention, 'pinhole' or 'published'; the others are the base's."""
        super().__init__(z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, conditioning=RayConditioning(rays), **synthesis_kwargs)
        self.rays = rays

    def _mapped_label_dim(self) -> int:
        return 0                         # identity stays with z
