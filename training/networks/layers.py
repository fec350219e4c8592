"""Primitives of all our networks.

Learning rates are equalised (Karras et al. 2018, section 4.1): weights are stored at unit variance and scaled at run
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, modulate, upfirdn2d

FEW_OUTPUTS = 4                          # of a matrix product that is bound by reading its input
BILINEAR = (1, 3, 3, 1)                  # the FIR kernel of all resampling in StyleGAN2


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean(x^2)) along `dim`."""
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + eps)


def computing_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which a network with such weights computes, unless it chooses half: float32, or float64 after
    G.double(). G.half() and G.bfloat16() only change how the weights are stored.
    """
    return torch.promote_types(weight.dtype, torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Modulated convolution (Karras et al. 2020b, section 2.2).

@misc.own_precision
def modulated_conv2d(
    x:                  Tensor,                         # Features                                      [N, I, H, W].
    weight:             Tensor,                         # Shared kernels                                [O, I, kh, kw].
    styles:             Tensor,                         # Scale per sample and input channel            [N, I].
    noise:              Tensor | None = None,           # Added to the output, broadcastable            [N, 1, H', W'].
    up:                 int     = 1,
    down:               int     = 1,
    padding:            int     = 0,
    resample_filter:    Tensor | None = None,           # From upfirdn2d.setup_filter().
    demodulate:         bool    = True,                 # Bring each output channel back to unit scale?
    flip_weight:        bool    = True,                 # True: correlation, as torch.nn.functional.conv2d.
    fused_modconv:      bool    = True,                 # Scale the kernels of each sample instead of its features?
    input_gain:         Tensor | None = None,           # Scale of the input, demodulated or not    [], [I] or [N, I].
) -> Tensor:                                            # [N, O, H', W']
    """Convolution with kernels that are scaled by `styles` per sample (equation 1) and normalised per output
    (equation 3).

    There are two ways to compute it: scale the kernels (w * s, grouped by sample) or, since the convolution is linear,
    scale its input by s and its output by the demodulation d. The second keeps the kernels shared.
    """
    y, demodulation = modulated_conv2d_unscaled(
        x, weight, styles, up=up, down=down, padding=padding, resample_filter=resample_filter, demodulate=demodulate,
        flip_weight=flip_weight, fused_modconv=fused_modconv, input_gain=input_gain)
    noise = None if noise is None else noise.to(y.dtype)
    if demodulation is None:
        return y if noise is None else y.add_(noise)
    demodulation = demodulation[:, :, None, None]
    return y * demodulation if noise is None else fma.fma(y, demodulation, noise)


@misc.own_precision
def modulated_conv2d_unscaled(
    x: Tensor, weight: Tensor, styles: Tensor, up: int = 1, down: int = 1, padding: int = 0,
    resample_filter: Tensor | None = None, demodulate: bool = True, flip_weight: bool = True,
    fused_modconv: bool = True, input_gain: Tensor | None = None, appended: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Like modulated_conv2d, but leaves demodulation to the caller, who can do it in a pass that is needed anyway.

    Returns (y, demodulation): y [N, O, H', W'], demodulation [N, O] in y's dtype. The result is
    y * demodulation[:, :, None, None]. demodulation is None if it was already applied, or not asked for. The caller may
    overwrite y. appended: more input channels [N or 1, E, H, W]; the last E of `weight` and `styles` belong to them.
    """
    N, I = styles.shape
    given = x.shape[1] + (0 if appended is None else appended.shape[1])
    assert x.shape[0] == N and given == I == weight.shape[1], \
        f"{given} channels of x {list(x.shape)}, styles {list(styles.shape)}, weight {list(weight.shape)}"
    precision = torch.promote_types(computing_dtype(weight), styles.dtype)
    weight, styles = weight.to(precision), styles.to(precision)
    if demodulate and x.dtype == torch.float16:
        weight, styles = _scale_to_unit_peak(weight, styles)
    demodulation = modulate.demodulation(weight, styles) if demodulate else None            # [N, O]
    styles = styles if input_gain is None else styles * input_gain
    resample = dict(f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight)

    if _is_short_product(x, weight, appended) and up == down == 1 and padding == 0:
        w = weight.flatten(1) * styles[:, None, :]                          # [N, O, I]
        w = w if demodulation is None else w * demodulation[:, :, None]
        H, W = x.shape[2:]
        pixels = x.permute(0, 2, 3, 1).reshape(N, H * W, I)                 # a view if channels are innermost
        return torch.bmm(w.to(x.dtype), pixels.mT).view(N, weight.shape[0], H, W), None

    if fused_modconv and _kernels_are_cheaper(x, weight, appended):
        x = x if appended is None else torch.cat([x, appended.expand(N, -1, -1, -1)], dim=1)
        w = weight.unsqueeze(0) * styles[:, None, :, None, None]            # [N, O, I, kh, kw]
        if demodulation is not None:
            w = w * demodulation[:, :, None, None, None]
        x = x.flatten(0, 1).unsqueeze(0) if N > 1 else x
        y = conv2d_resample.conv2d_resample(x, w.flatten(0, 1).to(x.dtype), groups=N, **resample)
        return y.view(N, -1, *y.shape[2:]) if N > 1 else y, None

    x = modulate.modulate(x, styles.to(x.dtype), appended)
    y = conv2d_resample.conv2d_resample(x, weight.to(x.dtype), **resample)
    return y, None if demodulation is None else demodulation.to(y.dtype)


def _kernels_are_cheaper(x: Tensor, weight: Tensor, appended: Tensor | None) -> bool:
    """Whether it is cheaper to scale kernels than features. On GPUs it is. On CPUs the grouped convolutions of several
    samples are slow, and features are copied in any case if something is appended.
    """
    return x.device.type != "cpu" or (x.shape[0] == 1 and appended is None and x.numel() > weight.numel())


def _is_short_product(x: Tensor, weight: Tensor, appended: Tensor | None) -> bool:
    """Whether the kernel has one pixel and few outputs, as ToRGB's. On CPUs a matrix product per sample then reads the
    features once and does not copy them.
    """
    is_small = tuple(weight.shape[2:]) == (1, 1) and weight.shape[0] <= FEW_OUTPUTS
    return is_small and x.device.type == "cpu" and appended is None


def _scale_to_unit_peak(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """Divides kernels and styles by their peaks, since half precision overflows at 65504. Demodulation cancels their
    scale.
    """
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax(dim=[1, 2, 3], keepdim=True) * math.sqrt(fan_in))
    return weight, styles / styles.abs().amax(dim=1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# Layers.

@persistence.persistent_class
class FullyConnectedLayer(nn.Module):
    """act(x W^T + b) over the last dimension."""

    def __init__(self,
        in_features:    int,
        out_features:   int,
        bias:           bool    = True,
        activation:     str     = "linear",             # A name in bias_act.activation_funcs.
        lr_multiplier:  float   = 1,                    # Slows this layer down by storing its weights larger.
        bias_init:      float | Sequence[float] = 0,    # One number, or one per output.
        weight_init:    float   = 1,                    # Standard deviation of the initial weights.
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        weight = torch.randn([out_features, in_features], dtype=torch.float32)
        self.weight = nn.Parameter(weight * (weight_init / lr_multiplier))
        initial = torch.zeros([out_features], dtype=torch.float32) + torch.as_tensor(bias_init, dtype=torch.float32)
        self.bias = nn.Parameter(initial) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    @misc.own_precision
    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None and x.ndim == 2 and x.dtype == self.weight.dtype == self.bias.dtype:
            # Both gains at no cost.
            x = torch.addmm(self.bias, x, self.weight.t(), beta=self.bias_gain, alpha=self.weight_gain)
            return x if self.activation == "linear" else bias_act.bias_act(x, act=self.activation)
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = self.bias if self.bias is None or self.bias_gain == 1 else self.bias * self.bias_gain
        b = None if b is None else b.to(x.dtype)
        if self.activation == "linear":
            return nn.functional.linear(x, w, b)
        return bias_act.bias_act(x @ w.t(), b, dim=x.ndim - 1, act=self.activation)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation}"


@persistence.persistent_class
class Conv2dLayer(misc.KeepsFilters):
    """Convolution, optional resampling, bias, activation, clamp."""

    def __init__(self,
        in_channels:        int,
        out_channels:       int,
        kernel_size:        int,                        # Odd.
        bias:               bool            = True,
        activation:         str             = "linear",
        up:                 int             = 1,
        down:               int             = 1,
        resample_filter:    Sequence[int]   = BILINEAR,
        conv_clamp:         float | None    = None,     # Clamp the output to +-this; None: do not.
        channels_last:      bool            = False,
        trainable:          bool            = True,     # False: store the weights as buffers (--freezed).
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.up, self.down = up, down
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.channels_last = channels_last
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size ** 2)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size], dtype=torch.float32)
        if channels_last:
            weight = weight.to(memory_format=torch.channels_last)
        initial_bias = torch.zeros([out_channels], dtype=torch.float32) if bias else None
        for name, value in (("weight", weight), ("bias", initial_bias)):
            if trainable and value is not None:
                setattr(self, name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @misc.own_precision
    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = None if self.bias is None else self.bias.to(x.dtype)
        x = conv2d_resample.conv2d_resample(x, w, f=self.resample_filter, up=self.up, down=self.down,
                                            padding=self.padding, flip_weight=self.up == 1)
        return act_with_gain(x, b, self.activation, gain, self.conv_clamp)

    def extra_repr(self) -> str:
        return (f"in_channels={self.in_channels}, out_channels={self.out_channels}, activation={self.activation}, "
                f"up={self.up}, down={self.down}")


def act_with_gain(x: Tensor, b: Tensor | None, activation: str, gain: float, clamp: float | None,
                  scale: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
    """Applies scale, noise, bias and activation; may overwrite x. `gain` multiplies the activation's own gain, and the
    clamp.
    """
    act_gain = bias_act.activation_funcs[activation].def_gain * gain
    clamp = None if clamp is None else clamp * gain
    return bias_act.scaled_bias_act(x, b, act=activation, gain=act_gain, clamp=clamp, scale=scale, noise=noise,
                                    inplace=True)


def channels_per_resolution(img_resolution: int, channel_base: int, channel_max: int) -> dict[int, int]:
    """Feature channels at 4, 8, ..., img_resolution: channel_base / resolution, at most channel_max."""
    log2 = int(math.log2(img_resolution))
    assert img_resolution == 2 ** log2 >= 4, f"image resolution {img_resolution}, expected a power of two from 4 on"
    return {2 ** i: min(channel_base // 2 ** i, channel_max) for i in range(2, log2 + 1)}


def half_precision_resolutions(img_resolution: int, num_fp16_res: int) -> set[int]:
    """The `num_fp16_res` highest resolutions from 8 on, where half precision pays."""
    return {img_resolution >> i for i in range(num_fp16_res) if img_resolution >> i >= 8}


HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def sqrt_half() -> float:
    """The gain that keeps the variance of a sum of two equal branches."""
    return float(np.sqrt(0.5))
