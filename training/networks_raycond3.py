"""raycond3: StyleGAN3 whose layers, ToRGB included, see the rays of their pixels. The latent sets the identity, the
rays set the viewpoint.
"""

from __future__ import annotations

from torch_utils import persistence
from training import networks_stylegan3
from training.networks.ray_conditioning import SeesRays
from training.networks_stylegan3 import (
    FullyConnectedLayer,
    MappingNetwork,
    SynthesisInput,
    SynthesisLayer,
    SynthesisNetwork,
    modulated_conv2d,
)

__all__ = ["FullyConnectedLayer", "Generator", "MappingNetwork", "SynthesisInput", "SynthesisLayer", "SynthesisNetwork",
           "modulated_conv2d"]


@persistence.persistent_class
class Generator(SeesRays, networks_stylegan3.Generator):
    """Latent z and camera label c [N, 25] -> image. Takes StyleGAN3's arguments and `rays`, the ray convention."""
