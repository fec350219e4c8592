"""The table of activations, and `bias_act` by its definition: slow and short. All other paths are tested against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dnnlib import EasyDict

_SQRT2 = math.sqrt(2)


def _row(func: Callable[[Tensor, float], Tensor], cuda_idx: int, def_alpha: float = 0.0, def_gain: float = 1.0,
         ref: str = "y", has_2nd_grad: bool = True) -> EasyDict:
    return EasyDict(func=func, def_alpha=def_alpha, def_gain=def_gain, cuda_idx=cuda_idx, ref=ref,
                    has_2nd_grad=has_2nd_grad)


# func(x, alpha): the activation without gain.
# def_alpha, def_gain: what None means. The gain keeps the variance of the features (He et al. 2015).
# cuda_idx: the number of the function in bias_act.cuh.
# ref: the tensor from which the derivative is computed. "y" (the output) costs no memory: the next layer keeps it too.
# has_2nd_grad: False if the second derivative is zero.
activation_funcs: dict[str, EasyDict] = {
    "linear":   _row(lambda x, alpha: x,                                cuda_idx=0, ref="",  has_2nd_grad=False),
    "relu":     _row(lambda x, alpha: functional.relu(x),               cuda_idx=1, def_gain=_SQRT2, has_2nd_grad=False),
    "lrelu":    _row(lambda x, alpha: functional.leaky_relu(x, alpha),  cuda_idx=2, def_alpha=0.2, def_gain=_SQRT2, has_2nd_grad=False),
    "tanh":     _row(lambda x, alpha: torch.tanh(x),                    cuda_idx=3),
    "sigmoid":  _row(lambda x, alpha: torch.sigmoid(x),                 cuda_idx=4),
    "elu":      _row(lambda x, alpha: functional.elu(x),                cuda_idx=5),
    "selu":     _row(lambda x, alpha: functional.selu(x),               cuda_idx=6),
    "softplus": _row(lambda x, alpha: functional.softplus(x),           cuda_idx=7),
    "swish":    _row(lambda x, alpha: x * torch.sigmoid(x),             cuda_idx=8, def_gain=_SQRT2, ref="x"),
}


class Settings(NamedTuple):
    """The numbers of a call, in the order of the registered operators' arguments."""

    dim:    int             # The dimension that the bias runs along.
    act:    str             # A name in activation_funcs.
    alpha:  float
    gain:   float
    clamp:  float           # Largest magnitude. Negative: no clamping.


def bias_act(x: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """clamp(gain * act(x + b), -clamp, clamp), each step one tensor operation."""
    dim, act, alpha, gain, clamp = settings
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = activation_funcs[act].func(x, alpha) * gain
    return y if clamp < 0 else y.clamp(-clamp, clamp)
