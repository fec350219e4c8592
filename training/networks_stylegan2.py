"""StyleGAN2 generator (Karras et al. 2020b; half precision as in StyleGAN2-ADA, 2020a), open to ray conditioning.

layers -> SynthesisLayer, ToRGBLayer -> SynthesisBlock -> SynthesisNetwork -> Generator. The synthesis network takes its
conditioning as an object (training/networks/ray_conditioning.py). Without one it is plain StyleGAN2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_utils import misc, persistence
from torch_utils.ops import conv2d_resample, upfirdn2d
from training.networks.discriminator import Discriminator, DiscriminatorBlock, DiscriminatorEpilogue, MinibatchStdLayer
from training.networks.generator import BaseGenerator, MappingNetwork
from training.networks.layers import (
    BILINEAR,
    HALF_DTYPES,
    Conv2dLayer,
    FullyConnectedLayer,
    act_with_gain,
    channels_per_resolution,
    computing_dtype,
    half_precision_resolutions,
    modulated_conv2d,
    modulated_conv2d_unscaled,
    normalize_2nd_moment,
    sqrt_half,
)
from training.networks.ray_conditioning import NoConditioning

__all__ = [
    "Conv2dLayer", "Discriminator", "DiscriminatorBlock", "DiscriminatorEpilogue", "FullyConnectedLayer", "Generator",
    "MappingNetwork", "MinibatchStdLayer", "SynthesisBlock", "SynthesisLayer", "SynthesisNetwork", "ToRGBLayer",
    "modulated_conv2d", "normalize_2nd_moment", "upfirdn2d",
]


@persistence.persistent_class
class SynthesisLayer(misc.KeepsFilters):
    """Style-modulated convolution, noise, bias, activation."""

    def __init__(self,
        in_channels:        int,                        # With the channels of the conditioning.
        out_channels:       int,
        w_dim:              int,
        resolution:         int,                        # Of the output.
        kernel_size:        int             = 3,
        up:                 int             = 1,
        use_noise:          bool            = True,
        activation:         str             = "lrelu",
        resample_filter:    Sequence[int]   = BILINEAR,
        conv_clamp:         float | None    = None,     # Clamp the output to +-this; None: do not.
        channels_last:      bool            = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2

        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size], dtype=torch.float32)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last) if channels_last else weight)
        self.bias = nn.Parameter(torch.zeros([out_channels], dtype=torch.float32))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        if use_noise:
            self.register_buffer("noise_const", torch.randn([resolution, resolution], dtype=torch.float32))
            self.noise_strength = nn.Parameter(torch.zeros([], dtype=torch.float32))

    @misc.own_precision
    def forward(self, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1,
                appended: Tensor | None = None) -> Tensor:
        """x: [N, in_channels, H, W], or without the channels in `appended`; w: [N, w_dim]. Returns
        [N, out_channels, resolution, resolution].
        """
        misc.assert_shape(x, [None, None, self.resolution // self.up, self.resolution // self.up])
        x, demodulation = modulated_conv2d_unscaled(
            x, self.weight, self.affine(w), up=self.up, padding=self.padding, resample_filter=self.resample_filter,
            flip_weight=self.up == 1, fused_modconv=fused_modconv, appended=appended)
        noise = self._noise(x, noise_mode)
        noise = noise if noise is None else noise.to(x.dtype)
        return act_with_gain(x, self.bias.to(x.dtype), self.activation, gain, self.conv_clamp, demodulation, noise)

    def _noise(self, x: Tensor, mode: str) -> Tensor | None:
        assert mode in ("random", "const", "none"), f"noise_mode {mode!r}, expected 'random', 'const' or 'none'"
        if not self.use_noise or mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        shape = [x.shape[0], 1, self.resolution, self.resolution]
        return torch.randn(shape, dtype=torch.float32, device=x.device) * self.noise_strength

    def extra_repr(self) -> str:
        return (f"in_channels={self.in_channels}, out_channels={self.out_channels}, resolution={self.resolution}, "
                f"up={self.up}")


@persistence.persistent_class
class ToRGBLayer(nn.Module):
    """Style-modulated convolution to the image channels, without demodulation, noise or activation."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, kernel_size: int = 1,
                 conv_clamp: float | None = None, channels_last: bool = False):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.w_dim = w_dim
        self.conv_clamp = conv_clamp
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size], dtype=torch.float32)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last) if channels_last else weight)
        self.bias = nn.Parameter(torch.zeros([out_channels], dtype=torch.float32))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size ** 2)

    @misc.own_precision
    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, padding=self.padding, demodulate=False,
                             fused_modconv=fused_modconv)
        return act_with_gain(x, self.bias.to(x.dtype), "linear", 1, self.conv_clamp)


@persistence.persistent_class
class SynthesisBlock(misc.KeepsFilters):
    """One resolution: a constant or an upsampling convolution, then a convolution and a branch to the image."""

    def __init__(self,
        in_channels:            int,                    # Without the conditioning's channels; 0 for the first block.
        out_channels:           int,
        w_dim:                  int,
        resolution:             int,
        img_channels:           int,
        is_last:                bool,
        architecture:           str             = "skip",       # 'orig', 'skip' or 'resnet'.
        resample_filter:        Sequence[int]   = BILINEAR,
        conv_clamp:             float | None    = 256,
        use_fp16:               bool            = False,        # Half precision in this block?
        fp16_channels_last:     bool            = False,
        half_dtype:             str             = "fp16",       # Which half: 'fp16' or 'bf16'.
        fused_modconv_default:  bool | str      = True,         # 'inference_only': fused outside of training.
        cond_channels:          int             = 0,            # What the conditioning appends.
        **layer_kwargs:         Any,                            # For SynthesisLayer.
    ):
        assert architecture in ("orig", "skip", "resnet"), architecture
        super().__init__()
        self.in_channels = in_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.is_last = is_last
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.half_dtype = half_dtype
        self.channels_last = use_fp16 and fp16_channels_last
        self.fused_modconv_default = fused_modconv_default
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        shared = dict(w_dim=w_dim, conv_clamp=conv_clamp, channels_last=self.channels_last)
        layer = dict(resolution=resolution, resample_filter=resample_filter, **shared, **layer_kwargs)

        has_input = in_channels > 0
        self.shows = is_last or architecture == "skip"              # adds to the image
        self.has_shortcut = has_input and architecture == "resnet"
        self.convs = ("conv0", "conv1") if has_input else ("conv1",)
        self.num_conv = len(self.convs)
        self.num_torgb = int(self.shows)
        if has_input:
            self.conv0 = SynthesisLayer(in_channels + cond_channels, out_channels, up=2, **layer)
        else:
            self.const = nn.Parameter(torch.randn([out_channels, resolution, resolution], dtype=torch.float32))
        self.conv1 = SynthesisLayer(out_channels + cond_channels, out_channels, **layer)
        if self.shows:
            self.torgb = ToRGBLayer(out_channels, img_channels, **shared)
        if self.has_shortcut:
            self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, up=2, resample_filter=resample_filter,
                                    channels_last=self.channels_last)

    @misc.own_precision
    def forward(self, x: Tensor | None, img: Tensor | None, ws: Tensor, rays: Any = None, force_fp32: bool = False,
                fused_modconv: bool | None = None, update_emas: bool = False,
                **layer_kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """x: [N, in_channels, H/2, W/2], img: [N, img_channels, H/2, W/2], ws: [N, num_conv + num_torgb, w_dim], rays:
        a bound conditioning. Returns x and img at this block's resolution. `update_emas` is StyleGAN3's; no effect.
        """
        misc.assert_shape(ws, [None, self.num_conv + self.num_torgb, self.w_dim])
        rays = NoConditioning() if rays is None else rays
        dtype, memory_format = self._numerics(ws.device, force_fp32)
        if fused_modconv is None:
            default = self.fused_modconv_default
            fused_modconv = not self.training if default == "inference_only" else default
        x = self._features(x, ws.shape[0]).to(dtype=dtype, memory_format=memory_format)

        shortcut = self.skip(x, gain=sqrt_half()) if self.has_shortcut else None
        for i, name in enumerate(self.convs):
            gain = sqrt_half() if self.has_shortcut and name == self.convs[-1] else 1
            x = getattr(self, name)(x, ws[:, i], gain=gain, fused_modconv=fused_modconv, appended=rays.channels_for(x),
                                    **layer_kwargs)
        x = x if shortcut is None else shortcut.add_(x)
        return x, self._image(x, img, ws, fused_modconv)

    def _features(self, x: Tensor | None, batch_size: int) -> Tensor:
        """The features of the block below, or the learned constant for each sample."""
        if self.in_channels == 0:
            return self.const.expand(batch_size, -1, -1, -1)
        misc.assert_shape(x, [None, self.in_channels, self.resolution // 2, self.resolution // 2])
        return x

    def _image(self, x: Tensor, img: Tensor | None, ws: Tensor, fused_modconv: bool) -> Tensor | None:
        """The image after this block, in full precision."""
        if img is not None:
            misc.assert_shape(img, [None, self.img_channels, self.resolution // 2, self.resolution // 2])
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if not self.shows:
            return img
        dtype, memory_format = self._numerics(x.device, force_fp32=True)
        share = self.torgb(x, ws[:, self.num_conv], fused_modconv=fused_modconv)
        share = share.to(dtype=dtype, memory_format=memory_format)
        return share if img is None else img.add_(share)

    def _numerics(self, device: torch.device, force_fp32: bool) -> tuple[torch.dtype, torch.memory_format]:
        """dtype and memory format. Half precision is for GPUs. CPUs convolve faster with channels innermost."""
        dtype = computing_dtype(self.conv1.weight)
        half = self.use_fp16 and not force_fp32 and device.type == "cuda" and dtype == torch.float32
        channels_last = conv2d_resample.prefers_channels_last(device) or (self.channels_last and not force_fp32)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return HALF_DTYPES[self.half_dtype] if half else dtype, memory_format

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class SynthesisNetwork(nn.Module):
    """Intermediate latents, and cameras if the conditioning sees them -> image."""

    def __init__(self,
        w_dim:              int,
        img_resolution:     int,                        # A power of two.
        img_channels:       int,
        channel_base:       int = 32768,                # Channels at resolution r: channel_base / r ...
        channel_max:        int = 512,                  # ... but at most this.
        num_fp16_res:       int = 4,                    # Half precision in this many of the highest resolutions.
        conditioning:       Any = None,                 # From training.networks.ray_conditioning; None: none.
        **block_kwargs:     Any,                        # For SynthesisBlock.
    ):
        super().__init__()
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_fp16_res = num_fp16_res
        self.conditioning = NoConditioning() if conditioning is None else conditioning
        channels = channels_per_resolution(img_resolution, channel_base, channel_max)
        half = half_precision_resolutions(img_resolution, num_fp16_res)

        self.block_resolutions = list(channels)
        self.num_ws = 0
        for res in self.block_resolutions:
            block = SynthesisBlock(channels[res // 2] if res > 4 else 0, channels[res], w_dim=w_dim, resolution=res,
                                   img_channels=img_channels, is_last=res == img_resolution, use_fp16=res in half,
                                   cond_channels=self.conditioning.num_channels, **block_kwargs)
            self.num_ws += block.num_conv + (block.num_torgb if block.is_last else 0)
            setattr(self, f"b{res}", block)

    @misc.own_precision
    def forward(self, ws: Tensor, c: Tensor | None = None, **block_kwargs: Any) -> Tensor:
        """ws: [N, num_ws, w_dim], c: [N, 25] or None; one ws serves many cameras, and one camera many ws.

        Returns images [N, img_channels, H, W] in about -1 .. 1.
        """
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        rays = self.conditioning.bind(c, ws.shape[0])
        ws = rays.expand(ws.to(computing_dtype(ws)))
        x = img = None
        first = 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            # ToRGB shares its w with the convolution that follows in the next block.
            x, img = block(x, img, ws[:, first : first + block.num_conv + block.num_torgb], rays=rays, **block_kwargs)
            first += block.num_conv
        return img.contiguous()

    def extra_repr(self) -> str:
        return (f"w_dim={self.w_dim}, num_ws={self.num_ws}, img_resolution={self.img_resolution}, "
                f"img_channels={self.img_channels}")


@persistence.persistent_class
class Generator(BaseGenerator):
    """Latent z and label c -> image, as StyleGAN2. The label goes to the mapping network."""

    mapping_class = MappingNetwork
    synthesis_class = SynthesisNetwork
