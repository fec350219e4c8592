"""The two ends of a modulated convolution: scaling features by styles, and bringing the result back to unit scale.

There is no CUDA kernel: GPUs scale the kernels instead of the features. See training's modulated_conv2d.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.modulate import cpu, reference

__all__ = ["demodulation", "modulate"]

backends.declare("modulate", Path(__file__).parent, cpu="modulate_cpu.cpp")


def modulate(
    x:          Tensor,                 # [N, C, H, W], any floating dtype.
    styles:     Tensor,                 # Factor per sample and channel, [N, C + E], dtype of x.
    appended:   Tensor | None = None,   # More channels, such as pixels' rays: [N or 1, E, H, W], dtype of x. None: E = 0.
    impl:       str           = "auto", # "auto": the fastest path for x's device; "ref": the definition.
) -> Tensor:                            # [N, C + E, H, W]. CPUs: channels_last, from the native path.
    """cat([x, appended], 1) * styles: Karras et al. 2020b, equation 1, on the features instead of the kernels.

    Differentiable any number of times.
    """
    assert x.ndim == 4, f"x of shape {list(x.shape)}, expected [N, C, H, W]"
    x, styles, appended = backends.in_one_dtype(x, styles, appended)
    N, C, H, W = x.shape
    extra = 0
    if appended is not None:
        assert appended.ndim == 4 and appended.shape[0] in (1, N) and appended.shape[2:] == x.shape[2:], \
            f"appended has shape {list(appended.shape)}, expected [{N} or 1, E, {H}, {W}]"
        extra = appended.shape[1]
    assert styles.shape == (N, C + extra), f"styles have shape {list(styles.shape)}, expected {[N, C + extra]}"
    for name, tensor in (("styles", styles), ("appended", appended)):
        assert tensor is None or tensor.dtype == x.dtype, f"{name}: {tensor.dtype}, x is {x.dtype}"

    path = backends.choose("modulate", x, lambda: cpu.takes(x), impl)
    return (cpu if path == "operator" else reference).modulate(x, styles, appended)


def demodulation(
    weight:     Tensor,                 # Shared kernels [O, I, kh, kw].
    styles:     Tensor,                 # Factor per sample and input channel, [N, I].
    impl:       str     = "auto",       # As in modulate.
) -> Tensor:                            # [N, O]
    """1 / |kernel * style| for each sample and output channel: Karras et al. 2020b, equation 3.

    Does not form the product of all kernels with all styles. Differentiable any number of times.
    """
    # [N, I * kh * kw]: the styles are repeated, since summing the kernels over their pixels first is slower.
    squares = styles.square().repeat_interleave(weight[0, 0].numel(), dim=1)
    kernels = weight.flatten(1)
    recorded = torch.is_grad_enabled() and (weight.requires_grad or styles.requires_grad)
    path = backends.choose("modulate", kernels, lambda: not recorded and cpu.takes(kernels), impl)
    return torch.rsqrt((cpu if path == "operator" else reference).energies(kernels, squares) + 1e-8)
