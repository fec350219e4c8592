"""Scaling of feature maps by styles, with further maps appended, and what brings the result back to unit scale: the two ends of a modulated convolution."""

from __future__ import annotations

import torch

from torch_utils import custom_ops
from torch_utils.ops import registry
from torch_utils.ops.modulate import native_cpu, operator_cpu, reference

__all__ = ["demodulation", "modulate"]


def modulate(
    x:          torch.Tensor,                   # [N, C, H, W], any floating dtype.
    styles:     torch.Tensor,                   # Factor per sample and channel, [N, C + E], dtype of x.
    appended:   torch.Tensor | None = None,     # Further channels, as the rays of the pixels: [N or 1, E, H, W], dtype of x. None: E = 0.
    impl:       str                 = "cuda",   # "cuda": the fastest path for x's device; "ref": the definition.
) -> torch.Tensor:                              # [N, C + E, H, W]; channels_last from the native path, which CPUs have.
    """cat([x, appended], 1) * styles (Karras et al. 2020b, equation 1, on the features instead of the kernels). Differentiable any number of times."""
    assert impl in ("cuda", "ref"), f"impl {impl!r}, expected 'cuda' or 'ref'"
    assert x.ndim == 4, f"x of shape {list(x.shape)}, expected [N, C, H, W]"
    x, styles, appended = registry.in_one_dtype(x, styles, appended)
    extra = 0
    if appended is not None:
        assert appended.ndim == 4 and appended.shape[0] in (1, x.shape[0]) and appended.shape[2:] == x.shape[2:], \
            f"appended has shape {list(appended.shape)}, expected [{x.shape[0]} or 1, E, {x.shape[2]}, {x.shape[3]}]"
        extra = appended.shape[1]
    assert styles.shape == (x.shape[0], x.shape[1] + extra), f"styles have shape {list(styles.shape)}, expected {[x.shape[0], x.shape[1] + extra]}"
    for name, tensor in (("styles", styles), ("appended", appended)):
        assert tensor is None or tensor.dtype == x.dtype, f"{name}: {tensor.dtype}, x is {x.dtype}"

    if impl != "ref" and _is_native(x):
        return operator_cpu.modulate(x, styles, appended)
    return reference.modulate(x, styles, appended)


def demodulation(
    weight:     torch.Tensor,                   # Shared kernels [O, I, kh, kw].
    styles:     torch.Tensor,                   # Factor per sample and input channel, [N, I].
    impl:       str                 = "cuda",
) -> torch.Tensor:                              # [N, O]
    """1 / |kernel * style| for each sample and output channel (Karras et al. 2020b, equation 3), without forming the product of all kernels with
    all styles. Differentiable any number of times.
    """
    squares = styles.square().repeat_interleave(weight[0, 0].numel(), dim=1)        # [N, I * kh * kw]: longer, since summing the kernels first is slower
    kernels = weight.flatten(1)
    recorded = torch.is_grad_enabled() and (weight.requires_grad or styles.requires_grad)
    if impl != "ref" and not recorded and _is_native(kernels):
        energies = operator_cpu.energies(kernels, squares)
    else:
        energies = squares @ kernels.square().t()
    return torch.rsqrt(energies + 1e-8)


def _is_native(x: torch.Tensor) -> bool:
    return custom_ops.mode() != "reference" and registry.available() and native_cpu.takes(x) and custom_ops.path("modulate", "cpu") == "native"
