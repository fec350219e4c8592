"""What all ops share: choosing the path of a call, registering operators, calling native code.

**One choice for all.** An op has up to three paths, which compute the same; `choose` says which one a call takes.

- "reference": the definition. With impl="ref", or RAYCOND_OPS=reference.
- "operator": operators registered with torch.library, whose kernels are native code. Where the op takes the call and
  the library of the tensor's device can be built (`torch_utils.custom_ops`).
- "plain": operations of PyTorch. Everywhere else, and inside the transforms that registered operators do not support.

**Registered operators** live in the `raycond::` namespace. Each stays one node for `torch.compile` and fake tensors.
Its derivative is written with registered operators again, so that second gradients need nothing else.
(torch.autograd.Function is silently wrong in double backward under dynamo.)
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_utils import custom_ops, misc

NAMESPACE = "raycond"
COMMON = Path(__file__).parent / "common"                                               # headers of all native sources
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}      # as DType in common/scalar.cuh


# ---------------------------------------------------------------------------------------------------------------------
# Choosing the path.

def declare(op: str, folder: Path, cuda: str | None = None, cpu: str | None = None) -> None:
    """Tells custom_ops which sources in `folder` are the native side of an op. Builds nothing."""
    headers = sorted(file for place in (COMMON, folder) for pattern in ("*.cuh", "*.h") for file in place.glob(pattern))
    sources, cpu_sources = ((folder / name,) if name else () for name in (cuda, cpu))
    custom_ops.declare(custom_ops.Plugin(op, sources, tuple(headers), (f"-I{COMMON}",), cpu_sources))


def choose(
    op:         str,                        # As declared.
    x:          Tensor,                     # The input whose device decides.
    takes:      Callable[[], bool],         # Is the operator defined for this call, and faster? Asked only if it can be used.
    impl:       str  = "auto",              # What the caller wants: "auto" or "cuda": the fastest path; "ref": the definition.
    always:     bool = False,               # Take the operator even without its native library: its kernels do without.
) -> str:
    """The path of this call: "reference", "operator" or "plain". May build the native library."""
    assert impl in ("auto", "cuda", "ref"), f"impl {impl!r}, expected 'cuda' (or 'auto') for the fastest path, or 'ref'"
    if impl == "ref" or custom_ops.mode() == "reference":
        return "reference"
    if not available() or not takes():
        return "plain"
    return "operator" if always or custom_ops.path(op, x.device.type) == "native" else "plain"


def available() -> bool:
    """Do registered operators support what PyTorch is doing right now?

    They have backward derivatives only. They cannot take part in forward-mode derivatives, in the transforms of
    torch.func (vmap, grad, jvp, ...) and in torch.jit.trace.
    """
    return not (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing())


def in_one_dtype(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast: the tensors in their widest dtype, as PyTorch's operations on several tensors. Else: unchanged.

    Autocast hands over tensors of either precision; without it, a mixture is the caller's mistake.
    """
    if not misc.any_autocast():
        return tensors
    given = [tensor for tensor in tensors if tensor is not None]
    if len({tensor.dtype for tensor in given}) < 2 or not misc.autocast_is_on(given[0].device.type):
        return tensors
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in given))
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


# ---------------------------------------------------------------------------------------------------------------------
# Registering operators.

def register(
    schema:         str,                                # "name(Tensor x, ...) -> Tensor"
    kernels:        Mapping[str, Callable[..., Any]],   # Dispatch key ("CPU", "CUDA", ...) -> kernel. It must not return its input.
    fake:           Callable[..., Any],                 # Shape, dtype and strides of the result without computing it.
    setup_context:  Callable[..., Any] | None = None,   # (ctx, inputs, output): keeps what the derivative needs.
    backward:       Callable[..., Any] | None = None,   # (ctx, grad) -> a gradient or None per input.
) -> Callable[..., Any]:                                # The operator, ready to call.
    """Defines one operator; torch.library explains the parts.

    Kernels run without autocast, which would change the precision of PyTorch's operations inside and thereby the
    promised dtype. The operator raises RuntimeError if a forward-mode derivative would have to pass through it.
    """
    name = schema[:schema.index("(")]
    _library.define(schema)
    for key, kernel in kernels.items():
        _library.impl(name, misc.own_precision(kernel), key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


class _Library(torch.library.Library):
    """Refuses tangents where PyTorch adds derivatives to an operator; it would drop them silently."""

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **kwargs: Any) -> Any:
        fn = _refuse_tangents(op_name, fn) if dispatch_key == "Autograd" else fn
        return super().impl(op_name, fn, dispatch_key, **kwargs)


def _refuse_tangents(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0 and any(_has_tangent(arg) for arg in args if isinstance(arg, Tensor)):
            raise RuntimeError(f"raycond::{name} has no forward-mode derivative; call the op through torch_utils.ops "
                               "inside the forward-mode level, or set RAYCOND_OPS=reference")
        return kernel(keyset, *args, **kwargs)
    return run


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


_library = _Library(NAMESPACE, "DEF")


def empty_result(x: Tensor, height: int, width: int) -> Tensor:
    """Uninitialised [N, C, height, width], with N, C, dtype, device and memory format of x [N, C, H, W]."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty([*x.shape[:2], height, width], dtype=x.dtype, device=x.device, memory_format=memory_format)


def laid_out_as(like: Tensor, y: Tensor) -> Tensor:
    """y with the strides of `like`, which is overwritten if it is needed for that."""
    return y if y.stride() == like.stride() else like.copy_(y)


# ---------------------------------------------------------------------------------------------------------------------
# Calling native code.

def launch(library: ctypes.CDLL, function: str, args: ctypes.Structure, device: torch.device,
           quiet: tuple[int, ...] = ()) -> int:
    """Calls `int function(args *, stream)` on the device's current stream. Returns its code: 0 or one of `quiet`.

    Raises RuntimeError if CUDA reports a fault.
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
    """Address of torch's own parallel loop. None in versions of torch that do not export it."""
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def launch_cpu(library: ctypes.CDLL, function: str, args: ctypes.Structure) -> None:
    """Calls `void function(args *, threads *)` with as many threads as torch uses."""
    threads = Threads(_parallel_for(), torch.get_num_threads())
    getattr(library, function)(ctypes.byref(args), ctypes.byref(threads))


def address(x: Tensor | None, dtype: torch.dtype, device: torch.device) -> int | None:
    """The address of a tensor's data, or None. Checks dtype and device, which the kernel cannot see."""
    if x is None:
        return None
    assert x.dtype == dtype and x.device == device, \
        f"a tensor of {x.dtype} on {x.device} for a kernel of {dtype} on {device}"
    return x.data_ptr()


def float_address(x: Tensor | None) -> int | None:
    """The same for CPU kernels, all of which compute in float32."""
    return address(x, torch.float32, torch.device("cpu"))


def index_of(device: torch.device) -> int:
    return 0 if device.index is None else device.index
