"""From tensors to the CUDA kernels of bias_act.cu."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.bias_act.reference import Settings, activation_funcs


class Args(ctypes.Structure):
    """BiasActArgs in bias_act.cuh."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("input", "input2", "ref", "bias", "out")],
        *[(name, ctypes.c_int64) for name in ("count", "step", "channels")],
        *[(name, ctypes.c_double) for name in ("alpha", "gain", "clamp")],
        *[(name, ctypes.c_int32) for name in ("dtype", "act", "order", "device")],
    ]


def run(library: ctypes.CDLL, order: int, x: Tensor, x2: Tensor | None, ref: Tensor | None, b: Tensor | None,
        settings: Settings) -> Tensor:
    """Launches the kernel of a derivative: order 0 is the function, 1 its gradient, 2 the gradient's in `ref`.

    From order 1 on, x is the incoming gradient. The result has the layout of `ref`, or of x if ref is None.
    """
    leader = x if ref is None else ref
    leader = leader if _is_dense(leader) else leader.clone()
    out = torch.empty_like(leader)
    inputs = [None if t is None else _laid_out_as(t, leader) for t in (x, x2, ref)]
    b = None if b is None else b.contiguous()
    step, channels = (1, 1) if b is None else (max(1, leader.stride(settings.dim)), b.numel())

    def address(t: Tensor | None) -> int | None:
        return backends.address(t, leader.dtype, leader.device)

    args = Args(*map(address, inputs), address(b), out.data_ptr(), leader.numel(), step, channels,
                settings.alpha, settings.gain, settings.clamp, backends.DTYPES[leader.dtype],
                activation_funcs[settings.act].cuda_idx, order, backends.index_of(leader.device))
    backends.launch(library, "raycond_bias_act", args, leader.device)
    return out


def _is_dense(x: Tensor) -> bool:
    """Does x fill a stretch of memory without gaps or overlaps, whatever the order of its dimensions?"""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape, x.stride()) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _laid_out_as(x: Tensor, leader: Tensor) -> Tensor:
    return x if x is leader or x.stride() == leader.stride() else torch.empty_like(leader).copy_(x)
