"""raycond2: StyleGAN2 whose convolutions see the rays of their pixels. The latent sets the identity, the rays set the
viewpoint.
"""

from __future__ import annotations

from torch_utils import persistence
from training import networks_stylegan2
from training.networks.ray_conditioning import SeesRays
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

__all__ = [
    "Conv2dLayer", "Discriminator", "DiscriminatorBlock", "DiscriminatorEpilogue", "FullyConnectedLayer", "Generator",
    "MappingNetwork", "MinibatchStdLayer", "SynthesisBlock", "SynthesisLayer", "SynthesisNetwork", "ToRGBLayer",
    "modulated_conv2d", "normalize_2nd_moment", "upfirdn2d",
]


@persistence.persistent_class
class Generator(SeesRays, networks_stylegan2.Generator):
    """Latent z and camera label c [N, 25] -> image. Takes StyleGAN2's arguments and `rays`, the ray convention."""
