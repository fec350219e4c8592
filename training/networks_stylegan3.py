"""StyleGAN3 generator (Karras et al. 2021). It is alias-free: each layer has a cutoff frequency, which rises from layer
to layer.

SynthesisInput, SynthesisLayer -> SynthesisNetwork -> Generator. training/networks/bands.py designs bands and filters.
As in StyleGAN2, the synthesis network takes its conditioning as an object (training/networks/ray_conditioning.py).

Frequencies and sampling rates are in cycles and samples per image width. Feature maps are canvases that reach beyond
the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_utils import misc, persistence
from torch_utils.ops import filtered_lrelu
from training.networks import generator, layers
from training.networks.bands import lowpass_filter, schedule
from training.networks.generator import BaseGenerator
from training.networks.layers import HALF_DTYPES, FullyConnectedLayer, computing_dtype
from training.networks.ray_conditioning import NoConditioning

__all__ = ["FullyConnectedLayer", "Generator", "MappingNetwork", "SynthesisInput", "SynthesisLayer", "SynthesisNetwork",
           "modulated_conv2d"]


# ---------------------------------------------------------------------------------------------------------------------
# Primitives.

def modulated_conv2d(
    x:              Tensor,                             # Features                                  [N, I, H, W].
    w:              Tensor,                             # Shared kernels                            [O, I, kh, kw].
    s:              Tensor,                             # Scale per sample and input channel        [N, I].
    demodulate:     bool                = True,         # Bring each output channel back to unit scale?
    padding:        int                 = 0,
    input_gain:     Tensor | None = None,               # Scale of the input, demodulated or not    [], [I] or [N, I].
) -> Tensor:                                            # [N, O, H', W']
    """`layers.modulated_conv2d` with StyleGAN3's argument names."""
    return layers.modulated_conv2d(x, w, s, padding=padding, demodulate=demodulate, input_gain=input_gain)


# ---------------------------------------------------------------------------------------------------------------------
# Mapping, input, layer.

@persistence.persistent_class
class MappingNetwork(generator.MappingNetwork):
    """Latent z and label c -> intermediate latents ws."""

    def __init__(self,
        z_dim:          int,
        c_dim:          int,                            # 0: no label.
        w_dim:          int,
        num_ws:         int,                            # Copies of w to return.
        num_layers:     int     = 2,
        lr_multiplier:  float   = 0.01,
        w_avg_beta:     float   = 0.998,                # Decay of the mean of w.
    ):
        super().__init__(z_dim, c_dim, w_dim, num_ws, num_layers=num_layers, lr_multiplier=lr_multiplier,
                         w_avg_beta=w_avg_beta)


@persistence.persistent_class
class SynthesisInput(nn.Module):
    """Fourier features of an infinite plane that w and a user's `transform` move and turn (section 3.2, appendix D)."""

    def __init__(self,
        w_dim:          int,
        channels:       int,
        size:           int | Sequence[int],            # Of the canvas: all, or (width, height).
        sampling_rate:  float,
        bandwidth:      float,                          # Highest frequency.
    ):
        super().__init__()
        self.w_dim = w_dim
        self.channels = channels
        self.size = np.broadcast_to(np.asarray(size), [2])
        self.sampling_rate = sampling_rate
        self.bandwidth = bandwidth
        direction = torch.randn([channels, 2], dtype=torch.float32)
        radius = direction.norm(dim=1, keepdim=True)
        # Uniform on a disc: a normal vector is shorter than r with probability 1 - exp(-r^2 / 2), a point of the unit
        # disc with probability r^2.
        freqs = direction / radius * (1 - torch.exp(-radius.square() / 2)).sqrt() * bandwidth
        self.weight = nn.Parameter(torch.randn([channels, channels], dtype=torch.float32))
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0, bias_init=(1, 0, 0, 0))
        self.register_buffer("transform", torch.eye(3, dtype=torch.float32))        # the user's: image -> Fourier plane
        self.register_buffer("freqs", freqs)                                # [channels, 2], (x, y)
        self.register_buffer("phases", torch.rand([channels], dtype=torch.float32) - 0.5)        # [cycles]

    @misc.own_precision
    def forward(self, w: Tensor) -> Tensor:
        """w: [N, w_dim]. Returns [N, channels, H, W] in full precision."""
        dtype = computing_dtype(self.weight)
        plane = self._motion(w.to(dtype)) @ self.transform.to(dtype)                            # [N, 3, 3]
        given = self.freqs.to(dtype)
        freqs = given @ plane[:, :2, :2]                               # [N, channels, 2]
        phases = self.phases.to(dtype) + (given @ plane[:, :2, 2:]).squeeze(2)   # [N, channels]
        # Fade out frequencies that the motion has brought near the sampling limit.
        fade = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)

        width, height = (int(size) for size in self.size)
        x, y = (_centred(n, self.sampling_rate, w.device, dtype) for n in (width, height))
        fx, fy = freqs[:, None, None, :, 0], freqs[:, None, None, :, 1]
        cycles = fx * x[:, None] + fy * y[:, None, None] + phases[:, None, None]            # [N, H, W, channels]
        features = torch.sin(cycles * (2 * math.pi)) * (1 - fade).clamp(0, 1)[:, None, None]
        mixed = features @ (self.weight.to(dtype) / math.sqrt(self.channels)).t()
        return mixed.permute(0, 3, 1, 2)                                   # [N, channels, H, W], channels innermost

    def _motion(self, w: Tensor) -> Tensor:
        """The learned motion, a rotation after a translation, [N, 3, 3]."""
        motion = self.affine(w)                                             # (cos, sin, x, y) up to a scale
        cos, sin, x, y = (motion / motion[:, :2].norm(dim=1, keepdim=True)).unbind(dim=1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        move = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1).view(-1, 3, 3)
        return turn @ move

    def extra_repr(self) -> str:
        return (f"w_dim={self.w_dim}, channels={self.channels}, size={self.size.tolist()}, "
                f"sampling_rate={self.sampling_rate:g}, bandwidth={self.bandwidth:g}")


def _centred(size: int, sampling_rate: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Positions [image widths from the centre] of a row of samples, [size]."""
    return (torch.arange(size, dtype=dtype, device=device) + 0.5 - size / 2) / sampling_rate


@persistence.persistent_class
class SynthesisLayer(misc.KeepsFilters):
    """Style-modulated convolution, then bias and leaky ReLU at a higher sampling rate, with low-pass filters before and
    after (section 3.2).
    """

    def __init__(self,
        w_dim:                  int,
        is_torgb:               bool,                   # The last layer: linear, not demodulated.
        is_critically_sampled:  bool,                   # Use frequencies up to half of the output's sampling rate?
        use_fp16:               bool,                   # Half precision on GPUs?
        in_channels:            int,                    # With the channels of the conditioning.
        out_channels:           int,
        in_size:                int | Sequence[int],    # Of the canvas: all, or (width, height).
        out_size:               int | Sequence[int],
        in_sampling_rate:       float,
        out_sampling_rate:      float,
        in_cutoff:              float,
        out_cutoff:             float,
        in_half_width:          float,                  # Of the transition band.
        out_half_width:         float,
        conv_kernel:            int             = 3,    # Size; not for ToRGB, whose kernel has size 1.
        filter_size:            int             = 6,    # Taps per sample of the lower rate.
        lrelu_upsampling:       int             = 2,    # The nonlinearity runs at this times the higher rate.
        use_radial_filters:     bool            = False,    # For downsampling, if not critically sampled.
        conv_clamp:             float | None    = 256,  # Clamp the activations to +-this; None: do not.
        magnitude_ema_beta:     float           = 0.999,    # Decay of the mean square of the input.
        half_dtype:             str             = "fp16",   # Which half: 'fp16' or 'bf16'.
    ):
        super().__init__()
        self.w_dim = w_dim
        self.is_torgb = is_torgb
        self.is_critically_sampled = is_critically_sampled
        self.use_fp16 = use_fp16
        self.half_dtype = half_dtype
        self.in_channels, self.out_channels = in_channels, out_channels
        self.in_size, self.out_size = (np.broadcast_to(np.asarray(size), [2]) for size in (in_size, out_size))
        self.in_sampling_rate, self.out_sampling_rate = in_sampling_rate, out_sampling_rate
        self.in_cutoff, self.out_cutoff = in_cutoff, out_cutoff
        self.in_half_width, self.out_half_width = in_half_width, out_half_width
        self.tmp_sampling_rate = max(in_sampling_rate, out_sampling_rate) * (1 if is_torgb else lrelu_upsampling)
        self.conv_kernel = 1 if is_torgb else conv_kernel
        self.conv_clamp = conv_clamp
        self.magnitude_ema_beta = magnitude_ema_beta

        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        shape = [out_channels, in_channels, self.conv_kernel, self.conv_kernel]
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros([out_channels], dtype=torch.float32))
        self.register_buffer("magnitude_ema", torch.ones([], dtype=torch.float32))
        if is_torgb:                                                        # demodulation does it for the others
            self.weight_gain = 1 / math.sqrt(in_channels * self.conv_kernel ** 2)

        self.up_factor = self._factor(in_sampling_rate)
        self.down_factor = self._factor(out_sampling_rate)
        self.up_taps, self.down_taps = (1 if factor == 1 or is_torgb else filter_size * factor
                                        for factor in (self.up_factor, self.down_factor))
        self.down_radial = use_radial_filters and not is_critically_sampled
        rate = self.tmp_sampling_rate
        self.register_buffer("up_filter", lowpass_filter(self.up_taps, in_cutoff, in_half_width * 2, rate))
        self.register_buffer("down_filter", lowpass_filter(self.down_taps, out_cutoff, out_half_width * 2, rate,
                                                           self.down_radial))
        # [left, right, top, bottom], at the higher rate.
        self.padding = [pad for axis in range(2) for pad in self._padding(axis)]

    def _factor(self, sampling_rate: float) -> int:
        factor = round(self.tmp_sampling_rate / sampling_rate)
        assert sampling_rate * factor == self.tmp_sampling_rate, \
            f"{self.tmp_sampling_rate} samples are no multiple of {sampling_rate}"
        return factor

    def _padding(self, axis: int) -> tuple[int, int]:
        """At the higher rate, so that exactly `out_size` samples remain and the canvases stay centred on the image."""
        have = (self.in_size[axis] + self.conv_kernel - 1) * self.up_factor                 # fully padded
        need = (self.out_size[axis] - 1) * self.down_factor + self.up_taps + self.down_taps - 1
        total = int(need - have)
        low = (total + self.up_factor) // 2
        return low, total - low

    @misc.own_precision
    def forward(self, x: Tensor, w: Tensor, noise_mode: str = "random", force_fp32: bool = False,
                update_emas: bool = False) -> Tensor:
        """x: [N, in_channels, H, W], w: [N, w_dim]. Returns [N, out_channels, H', W']. `noise_mode` is StyleGAN2's;
        there is no noise here.
        """
        assert noise_mode in ("random", "const", "none"), noise_mode
        misc.assert_shape(x, [None, self.in_channels, int(self.in_size[1]), int(self.in_size[0])])
        misc.assert_shape(w, [x.shape[0], self.w_dim])
        dtype = computing_dtype(self.weight)
        if update_emas:
            energy = x.detach().to(dtype).square().mean()
            self.magnitude_ema.copy_(energy.lerp(self.magnitude_ema.to(dtype), self.magnitude_ema_beta))

        styles = self.affine(w) * self.weight_gain if self.is_torgb else self.affine(w)     # [N, in_channels]
        half = self.use_fp16 and not force_fp32 and x.device.type == "cuda" and dtype == torch.float32
        x = x.to(HALF_DTYPES[self.half_dtype] if half else dtype)
        x = modulated_conv2d(x, self.weight, styles, demodulate=not self.is_torgb, padding=self.conv_kernel - 1,
                             input_gain=self.magnitude_ema.rsqrt())
        gain, slope = (1, 1) if self.is_torgb else (math.sqrt(2), 0.2)
        return filtered_lrelu.filtered_lrelu(
            x, fu=self.up_filter, fd=self.down_filter, b=self.bias.to(x.dtype), up=self.up_factor,
            down=self.down_factor, padding=self.padding, gain=gain, slope=slope, clamp=self.conv_clamp)

    def extra_repr(self) -> str:
        rates = (self.in_sampling_rate, self.tmp_sampling_rate, self.out_sampling_rate)
        return (f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
                f"{self.in_size.tolist()} -> {self.out_size.tolist()}, "
                f"rates {' -> '.join(f'{rate:g}' for rate in rates)}, use_fp16={self.use_fp16}")


# ---------------------------------------------------------------------------------------------------------------------
# Networks.

@persistence.persistent_class
class SynthesisNetwork(nn.Module):
    """Intermediate latents, and cameras if the conditioning sees them -> image."""

    def __init__(self,
        w_dim:              int,
        img_resolution:     int,
        img_channels:       int,
        channel_base:       int     = 32768,            # Channels at cutoff f: channel_base / 2f ...
        channel_max:        int     = 512,              # ... but at most this.
        num_layers:         int     = 14,               # Without input and ToRGB.
        num_critical:       int     = 2,                # Layers at the end that use all frequencies.
        first_cutoff:       float   = 2,
        first_stopband:     float   = 2 ** 2.1,
        last_stopband_rel:  float   = 2 ** 0.3,         # Times the last cutoff.
        margin_size:        int     = 10,               # Samples of the canvas beyond the image, on each side.
        output_scale:       float   = 0.25,
        num_fp16_res:       int     = 4,                # Half precision in this many of the highest resolutions.
        conditioning:       Any     = None,             # From training.networks.ray_conditioning; None: none.
        **layer_kwargs:     Any,                        # For SynthesisLayer.
    ):
        super().__init__()
        self.w_dim = w_dim
        self.num_ws = num_layers + 2
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.num_layers, self.num_critical = num_layers, num_critical
        self.margin_size = margin_size
        self.output_scale = output_scale
        self.num_fp16_res = num_fp16_res
        self.conditioning = NoConditioning() if conditioning is None else conditioning
        bands = schedule(img_resolution, img_channels, channel_base, channel_max, num_layers, num_critical,
                         first_cutoff, first_stopband, last_stopband_rel, margin_size)

        first = bands[0]
        self.input = SynthesisInput(w_dim, first.channels, first.size, first.sampling_rate, bandwidth=first.cutoff)
        self.layer_names = []
        for index, (source, band) in enumerate(zip([first, *bands], bands)):
            layer = SynthesisLayer(
                w_dim                   = w_dim,
                is_torgb                = index == num_layers,
                is_critically_sampled   = index >= num_layers - num_critical,
                use_fp16                = band.sampling_rate * 2 ** num_fp16_res > img_resolution,
                in_channels             = source.channels + self.conditioning.num_channels,
                out_channels            = band.channels,
                in_size                 = source.size,
                out_size                = band.size,
                in_sampling_rate        = source.sampling_rate,
                out_sampling_rate       = band.sampling_rate,
                in_cutoff               = source.cutoff,
                out_cutoff              = band.cutoff,
                in_half_width           = source.half_width,
                out_half_width          = band.half_width,
                **layer_kwargs)
            self.layer_names.append(f"L{index}_{band.size}_{band.channels}")
            setattr(self, self.layer_names[-1], layer)

    @misc.own_precision
    def forward(self, ws: Tensor, c: Tensor | None = None, **layer_kwargs: Any) -> Tensor:
        """ws: [N, num_ws, w_dim], c: [N, 25] or None; one ws serves many cameras, and one camera many ws.

        Returns images [N, img_channels, H, W] in about -1 .. 1.
        """
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        rays = self.conditioning.bind(c, ws.shape[0])
        w_input, *w_layers = rays.expand(ws).unbind(dim=1)
        x = self.input(w_input)
        for name, w in zip(self.layer_names, w_layers):
            layer = getattr(self, name)
            # In full precision, since the rays count in the mean square of the layer's input.
            x = layer(rays.append_to(x, layer.in_sampling_rate, dtype=computing_dtype(layer.weight)), w, **layer_kwargs)
        misc.assert_shape(x, [None, self.img_channels, self.img_resolution, self.img_resolution])
        return x.to(computing_dtype(layer.weight)) * self.output_scale

    def extra_repr(self) -> str:
        image = [self.img_channels, self.img_resolution, self.img_resolution]
        return f"{self.num_layers} layers, the last {self.num_critical} critical -> {image}"


@persistence.persistent_class
class Generator(BaseGenerator):
    """Latent z and label c -> image, as StyleGAN3. The label goes to the mapping network."""

    mapping_class = MappingNetwork
    synthesis_class = SynthesisNetwork
