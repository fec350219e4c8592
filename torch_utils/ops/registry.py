"""Registers operators in the `raycond::` namespace of torch.library: schema, shapes, kernels, derivatives.

A registered operator stays one node for `torch.compile` and fake tensors. Its derivative is written with registered operators
again, so that second gradients need nothing else. (torch.autograd.Function is silently wrong in double backward under dynamo.)

Registered operators have backward derivatives only. Where PyTorch does something else with a call (`available` says so), the op
is computed by PyTorch's own operations instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.autograd import forward_ad

from torch_utils import misc

NAMESPACE = "raycond"


def available() -> bool:
    """Can a registered operator take part in what PyTorch is doing right now?

    Not in forward-mode derivatives, torch.func's transforms (vmap, grad, jvp, ...) and torch.jit.trace.
    """
    return not (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing())


def in_one_dtype(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Under autocast the tensors in their widest dtype, as PyTorch's own operations of several tensors; elsewhere as they are.

    Autocast hands on tensors of either precision, while without it a mixture is a mistake of the caller.
    """
    if not misc.any_autocast():
        return tensors
    given = [tensor for tensor in tensors if tensor is not None]
    if len({tensor.dtype for tensor in given}) < 2 or not misc.autocast_is_on(given[0].device.type):
        return tensors
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in given))
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def register(
    schema:         str,                                # "name(Tensor x, ...) -> Tensor"
    kernels:        Mapping[str, Callable[..., Any]],   # Dispatch key ("CPU", "CUDA", ...) -> kernel. No kernel may return its input.
    fake:           Callable[..., Any],                 # Shape, dtype and strides of the result without computing it.
    setup_context:  Callable[..., Any] | None = None,   # (ctx, inputs, output): keeps what the derivative needs.
    backward:       Callable[..., Any] | None = None,   # (ctx, grad) -> a gradient or None per input.
) -> Callable[..., Any]:                                # The operator, ready to call.
    """Defines one operator. See torch.library for the meaning of the parts.

    Kernels run without autocast, which would change the precision of PyTorch's operations inside, and with it the
    promised dtype.
    RuntimeError where a forward-mode derivative would have to pass through the operator.
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
    """Where derivatives begin, tangents are refused: they would be dropped without a word."""

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **kwargs: Any) -> Any:
        return super().impl(op_name, _refuse_tangents(op_name, fn) if dispatch_key == "Autograd" else fn, dispatch_key, **kwargs)


def _refuse_tangents(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0 and any(_has_tangent(arg) for arg in args if isinstance(arg, torch.Tensor)):
            raise RuntimeError(f"raycond::{name} has no forward-mode derivative; call the op through torch_utils.ops inside the forward-mode "
                               "level, or set RAYCOND_OPS=reference")
        return kernel(keyset, *args, **kwargs)
    return run


def _has_tangent(x: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


_library = _Library(NAMESPACE, "DEF")
