"""raycond2: StyleGAN2 whose convolutions see the rays of their pixels. The latent is the identity, the rays are the viewpoint."""

from __future__ import annotations

from typing import Any

from torch_utils import persistence
from training import networks_stylegan2
from training.networks_stylegan2 import (
    Conv2dLayer,
    Discriminator,
    DiscriminatorBlock,
    DiscriminatorEpilogue,
    FullyConnectedLayer,
    MappingNetwork,
    MinibatchStdLayer,
    SynthesisBlock,
    SynthesisLayer,
    SynthesisNetwork,
    ToRGBLayer,
    modulated_conv2d,
    normalize_2nd_moment,
    upfirdn2d,
)
from training.ray_conditioning import RayConditioning

__all__ = [
    "Conv2dLayer", "Discriminator", "DiscriminatorBlock", "DiscriminatorEpilogue", "FullyConnectedLayer", "Generator", "MappingNetwork",
    "MinibatchStdLayer", "SynthesisBlock", "SynthesisLayer", "SynthesisNetwork", "ToRGBLayer", "modulated_conv2d", "normalize_2nd_moment",
    "upfirdn2d",
]


@persistence.persistent_class
class Generator(networks_stylegan2.Generator):
    """Latent z and camera label c [N, 25] -> image. The arguments are StyleGAN2's, and `rays`: the ray convention."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, img_resolution: int, img_channels: int, mapping_kwargs: dict | None = None,
                 rays: str = "published", **synthesis_kwargs: Any):
        super().__init__(z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, conditioning=RayConditioning(rays), **synthesis_kwargs)
        self.rays = rays

    def _mapped_label_dim(self) -> int:
        return 0                         # identity stays with z
