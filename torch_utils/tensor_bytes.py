"""Tensors as plain bytes in a pickle: no torch.load, no code, no copy on the way in.

Protocol 5 reads a writable buffer straight from the file into a bytearray, on which the tensor is then a view.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

import torch

MAX_DIMENSIONS = 64                     # torch's own limit
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype) and f"torch.{name}" == str(dtype)}


class StoredTensor:
    """Pickles in the tensor's place, as a call of `decode`, and is unpickled as a tensor on the CPU."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce_ex__(self, protocol: int) -> tuple:
        return decode, encode(self.tensor, protocol)


def encode(tensor: torch.Tensor, protocol: int = 5) -> tuple:
    """The arguments of `decode`. Keeps the memory format of dense tensors; others become contiguous."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise pickle.PicklingError(f"cannot store a tensor of layout {tensor.layout} and dtype {tensor.dtype} on {tensor.device}")
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    order = tuple(sorted(range(tensor.ndim), key=lambda d: (-tensor.stride(d), d)))       # outermost dimension in memory first
    dense = tensor.permute(order).contiguous()
    flat = dense.as_strided([dense.numel()], [1]).view(torch.uint8).numpy()              # a single number may have any stride
    data = pickle.PickleBuffer(flat) if protocol >= 5 else flat.tobytes()
    name = str(tensor.dtype).removeprefix("torch.")
    return (data, name, tuple(tensor.shape)) + (() if order == tuple(range(tensor.ndim)) else (order,))


def decode(data: bytes | bytearray, dtype: str, shape: Sequence[int], order: Sequence[int] | None = None) -> torch.Tensor:
    """A tensor of that dtype ('float32', 'bfloat16', ...) and shape on those bytes.

    order: the dimensions from the outermost to the innermost in memory; None: as they come. A bytearray is not copied.
    Raises ValueError unless all of it fits together.
    """
    sized = isinstance(shape, (tuple, list)) and len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    order = range(len(shape)) if sized and order is None else order
    ordered = sized and isinstance(order, (tuple, list, range)) and len(order) == len(shape) and all(type(d) is int for d in order)
    fits = (ordered and sorted(order) == list(range(len(shape))) and isinstance(data, (bytes, bytearray)) and isinstance(dtype, str)
            and dtype in _DTYPES and len(data) == math.prod(shape) * _DTYPES[dtype].itemsize)
    if not fits:                         # what the file says may be anything, and without end
        size = f"{len(data)} bytes" if isinstance(data, (bytes, bytearray)) else type(data).__name__
        rest = f"dtype {dtype!r:.40}, shape {list(shape)}, order {list(order)}" if ordered and isinstance(dtype, str) else "unknown dtype, shape or order"
        raise ValueError(f"a stored tensor of {size}, {rest} does not fit together")
    if not data:
        return torch.empty(tuple(shape), dtype=_DTYPES[dtype])
    flat = torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=_DTYPES[dtype])
    return flat.view([shape[d] for d in order]).permute([list(order).index(d) for d in range(len(shape))])
