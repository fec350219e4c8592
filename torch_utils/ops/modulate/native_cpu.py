"""From tensors to modulate_cpu.cpp: float32, the result in channels_last."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from torch_utils import custom_ops
from torch_utils.ops import launching

_FOLDER = Path(__file__).parent
PLUGIN = custom_ops.declare(custom_ops.Plugin("modulate", (), launching.headers_of(_FOLDER), (f"-I{launching.COMMON}",),
                                              cpu_sources=(_FOLDER / "modulate_cpu.cpp",)))

LEAST_ELEMENTS = 1 << 17                # below, calling costs more than the pass over memory that it saves


class Job(ctypes.Structure):
    """As in modulate_cpu.cpp."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "appended", "styles", "dy", "out", "d_styles", "d_appended")],
        *[(name, ctypes.c_int64) for name in ("N", "P", "C", "E", "stride_n", "stride_e", "stride_p")],
    ]


class Energies(ctypes.Structure):
    """As in modulate_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_void_p) for name in ("kernels", "squares", "out")], *[(name, ctypes.c_int64) for name in ("N", "O", "K")]]


def energies(kernels: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """squares [N, K] @ (kernels [O, K] ^ 2).t(), without the squares of all kernels in memory."""
    kernels, squares = kernels.contiguous(), squares.contiguous()
    out = kernels.new_empty([len(squares), len(kernels)])
    job = Energies(*map(launching.float_address, (kernels, squares)), out.data_ptr(), len(squares), *kernels.shape)
    launching.launch_cpu(custom_ops.library("modulate", "cpu"), "raycond_energies", job)
    return out


def takes(x: torch.Tensor) -> bool:
    """Is the native path defined for this call, and worth it?"""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LEAST_ELEMENTS


def forward(x: torch.Tensor, styles: torch.Tensor, appended: torch.Tensor | None) -> torch.Tensor:
    """cat([x, appended], 1) * styles; where `appended` is None, zeros take its channels."""
    y = empty(x, styles)
    x = x.contiguous(memory_format=torch.channels_last)
    _launch("raycond_modulate", x.shape[1], y, appended, x=x, styles=styles.contiguous(), out=y)
    return y


def empty(x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """The result, uninitialised."""
    return torch.empty([*styles.shape, *x.shape[2:]], dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def back(dy: torch.Tensor, x: torch.Tensor | None, styles: torch.Tensor, appended: torch.Tensor | None, channels: int,
         wanted: list[bool]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, styles and (per sample) `appended` as far as `wanted`, else [0]. `channels` are those of x, which only styles need."""
    dy = dy.contiguous(memory_format=torch.channels_last)
    results = like_inputs(dy, channels, wanted)
    dx, d_styles, d_appended = (result if use else None for result, use in zip(results, wanted))
    x = x.contiguous(memory_format=torch.channels_last) if wanted[1] else None
    _launch("raycond_modulate_back", channels, dy, appended, x=x, styles=styles.contiguous(), dy=dy, out=dx, d_styles=d_styles, d_appended=d_appended)
    return results


def like_inputs(dy: torch.Tensor, channels: int, wanted: list[bool]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uninitialised gradients of x, styles and `appended`; [0] for those that are not wanted."""
    N, all_channels, H, W = dy.shape
    dx = torch.empty([N, channels, H, W], dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last) if wanted[0] else dy.new_empty([0])
    return dx, dy.new_empty([N, all_channels] if wanted[1] else [0]), dy.new_empty([N, all_channels - channels, H, W] if wanted[2] else [0])


def _launch(function: str, channels: int, like: torch.Tensor, appended: torch.Tensor | None, **tensors: torch.Tensor | None) -> None:
    """`like` has the shape of the result."""
    N, all_channels, H, W = like.shape
    if like.numel() == 0:
        if tensors.get("d_styles") is not None:
            tensors["d_styles"].zero_()
        return
    strides = (0, 0, 0)
    if appended is not None:
        appended = appended if appended.stride(2) == W * appended.stride(3) else appended.contiguous()
        strides = (appended.stride(0) if appended.shape[0] > 1 else 0, appended.stride(1), appended.stride(3))
    addresses = {name: launching.float_address(tensor) for name, tensor in tensors.items()}
    job = Job(**addresses, appended=launching.float_address(appended), N=N, P=H * W, C=channels, E=all_channels - channels,
              stride_n=strides[0], stride_e=strides[1], stride_p=strides[2])
    launching.launch_cpu(custom_ops.library("modulate", "cpu"), function, job)
