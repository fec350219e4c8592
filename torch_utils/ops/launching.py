"""From tensors to a call of a launcher in a native library."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

COMMON = Path(__file__).parent / "common"                   # headers of all native sources
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}      # as DType in common/scalar.cuh


def headers_of(folder: Path) -> tuple[Path, ...]:
    """What a library built in `folder` depends on besides its sources."""
    return tuple(sorted([*COMMON.glob("*.cuh"), *folder.glob("*.cuh")]))


def launch(library: ctypes.CDLL, function: str, args: ctypes.Structure, device: torch.device, quiet: tuple[int, ...] = ()) -> int:
    """Calls `int function(args *, stream)` on the device's current stream and returns its code: 0, or one of `quiet`.

    RuntimeError where CUDA reports a fault.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    code = getattr(library, function)(ctypes.byref(args), ctypes.c_void_p(stream))
    if code != 0 and code not in quiet:
        describe = library.raycond_error_string
        describe.restype = ctypes.c_char_p
        raise RuntimeError(f"{function} on {device}: CUDA error {code}: {describe(code).decode()}")
    return code


def address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def index_of(device: torch.device) -> int:
    return 0 if device.index is None else device.index
