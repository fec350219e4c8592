"""The activation functions that `bias_act` knows, as data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from dnnlib import EasyDict

_SQRT2 = math.sqrt(2)


def _row(func: Callable[[torch.Tensor, float], torch.Tensor], cuda_idx: int, def_alpha: float = 0.0, def_gain: float = 1.0,
         ref: str = "y", has_2nd_grad: bool = True) -> EasyDict:
    return EasyDict(func=func, def_alpha=def_alpha, def_gain=def_gain, cuda_idx=cuda_idx, ref=ref, has_2nd_grad=has_2nd_grad)


# func(x, alpha): the activation without gain.
# def_alpha, def_gain: taken where the caller gives None. The gain keeps the variance of the features (He et al. 2015).
# cuda_idx: the number of the function in bias_act.cuh.
# ref: the tensor from which the derivative is computed. "y" (the output) costs no memory, since the next layer keeps it too.
# has_2nd_grad: False where the second derivative is zero.
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
