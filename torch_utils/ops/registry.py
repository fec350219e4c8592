"""Registers operators in the `raycond::` namespace of torch.library: schema, shapes, kernels, derivatives.

A registered operator stays one node for `torch.compile` and fake tensors. Its derivative is written with registered operators
again, so that second gradients need nothing else. (torch.autograd.Function is silently wrong in double backward under dynamo.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

NAMESPACE = "raycond"
_library = torch.library.Library(NAMESPACE, "DEF")


def register(
    schema:         str,                                # "name(Tensor x, ...) -> Tensor"
    kernels:        Mapping[str, Callable[..., Any]],   # Dispatch key ("CPU", "CUDA", ...) -> kernel. No kernel may return its input.
    fake:           Callable[..., Any],                 # Shape, dtype and strides of the result without computing it.
    setup_context:  Callable[..., Any] | None = None,   # (ctx, inputs, output): keeps what the derivative needs.
    backward:       Callable[..., Any] | None = None,   # (ctx, grad) -> a gradient or None per input.
) -> Callable[..., Any]:                                # The operator, ready to call.
    """Defines one operator. See torch.library for the meaning of the parts."""
    name = schema[:schema.index("(")]
    _library.define(schema)
    for key, kernel in kernels.items():
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
