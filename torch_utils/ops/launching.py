"""From tensors to a call of a launcher in a native library."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

COMMON = Path(__file__).parent / "common"                   # headers of all native sources
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}      # as DType in common/scalar.cuh


def headers_of(folder: Path) -> tuple[Path, ...]:
    """What a library built in `folder` depends on besides its sources."""
    return tuple(sorted(file for place in (COMMON, folder) for pattern in ("*.cuh", "*.h") for file in place.glob(pattern)))


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


class Threads(ctypes.Structure):
    """As in common/parallel.h."""
    _fields_ = [("torch", ctypes.c_void_p), ("count", ctypes.c_int32)]


@functools.cache
def _parallel_for() -> int | None:
    """The address of torch's own loop over threads, None in versions that do not lend it."""
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def launch_cpu(library: ctypes.CDLL, function: str, args: ctypes.Structure) -> None:
    """Calls `void function(args *, threads *)` with as many threads as torch uses."""
    getattr(library, function)(ctypes.byref(args), ctypes.byref(Threads(_parallel_for(), torch.get_num_threads())))


def address(x: torch.Tensor | None, dtype: torch.dtype, device: torch.device) -> int | None:
    """For a kernel that knows no more than the address: of a tensor (None: 0) of the dtype and on the device that it works with."""
    if x is None:
        return None
    assert x.dtype == dtype and x.device == device, f"a tensor of {x.dtype} on {x.device} for a kernel of {dtype} on {device}"
    return x.data_ptr()


def float_address(x: torch.Tensor | None) -> int | None:
    """For the kernels of CPUs, which know float32 alone."""
    return address(x, torch.float32, torch.device("cpu"))


def index_of(device: torch.device) -> int:
    return 0 if device.index is None else device.index
