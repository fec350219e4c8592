"""A module as init arguments, named tensors and flags, and back."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dnnlib.util import UserError
from torch_utils.misc import KeepsFilters, named_params_and_buffers


def get_state(module: torch.nn.Module) -> dict[str, Any]:
    """`tensors`: the module's own, by name. `training`: its mode. `training_differs`: submodules whose mode differs
    from it. `trainable`: the parameters that require gradients.
    """
    return dict(
        tensors=dict(named_params_and_buffers(module)),
        training=module.training,
        training_differs=[name for name, child in module.named_modules() if child.training != module.training],
        trainable=[name for name, param in module.named_parameters() if param.requires_grad],
    )


def restore(cls: type, args: Sequence, kwargs: dict, state: dict[str, Any], is_ours: bool, may_lack: str = "",
            kept_dtypes: Collection[torch.dtype] | None = None) -> torch.nn.Module:
    """A module on the CPU with these init arguments and this state. Leaves torch's random state alone.

    The state's tensors become the module's, without a copy unless they are converted: those of `kept_dtypes` (None:
    all) are not, save for filters (`misc.KeepsFilters`); others get the dtype that the constructor chose. Where the
    state lacks tensors whose names match the pattern `may_lack`, or that no state_dict has, the constructor's values
    stay.

    is_ours: a class of this project, whose random tensors are all parameters or buffers. Its arguments have limits.
    Raises UserError where arguments, names and shapes do not fit together.
    """
    tensors = state.get("tensors")
    if not isinstance(tensors, dict):
        raise UserError("the file holds no tensors for it")
    budget = 3 * sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, Tensor)) + SPARE_ELEMENTS
    try:
        if is_ours:
            _check_arguments(dict(inspect.signature(cls).bind_partial(*args, **kwargs).arguments))
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), _Allocations(is_ours, budget):
            module = cls(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:           # a constructor may raise anything if it gets arguments of another class
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"it cannot be built from the init arguments in the file: {what}") from error
    _put_tensors(module, tensors, may_lack, kept_dtypes)
    _set_flags(module, state)
    return module


class _Allocations(TorchFunctionMode):
    """Inside, new tensors count against a budget of elements. With `skip_random`, random tensors are uninitialised
    memory and scaling leaves them as they are: the file's tensors will replace them, and touching the memory would take
    longer than reading the file. The meta device does the same, but its first operation imports torch._dynamo (1.1 s,
    torch 2.13).
    """

    _SCALING = (Tensor.mul, Tensor.__mul__, Tensor.div, Tensor.__truediv__)

    def __init__(self, skip_random: bool, budget: int):
        super().__init__()
        self.skip_random, self.budget = skip_random, budget
        self.untouched: dict[int, Tensor] = {}           # by id

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._SCALING and id(args[0]) in self.untouched and isinstance(args[1], (int, float)):
            return args[0]
        skipped = self.skip_random and func in (torch.randn, torch.rand)
        if skipped:
            func = torch.empty
            kwargs.pop("generator", None)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.budget -= max(result.numel(), 1)
            if self.budget < 0:
                raise UserError("the init arguments ask for far more numbers than the file has")
            if skipped:
                self.untouched[id(result)] = result
        return result


def _put_tensors(module: torch.nn.Module, tensors: dict[str, Any], may_lack: str,
                 kept_dtypes: Collection[torch.dtype] | None) -> None:
    """Raises UserError, and changes nothing, unless names and shapes agree."""
    slots = dict(named_params_and_buffers(module))
    lasting = module.state_dict().keys()
    missing = [name for name in slots if name not in tensors and name in lasting
               and not (may_lack and re.fullmatch(may_lack, name))]
    if missing:
        raise UserError(f"the file lacks its tensor {_first(missing)}")
    extra = [str(name) for name in tensors if name not in slots]
    if extra:
        raise UserError(f"it has no such tensor as {_first(extra)} in the file")
    for name, tensor in tensors.items():
        _check_fit(tensor, slots[name], f"its tensor {name!r}")

    filters = {f"{prefix}.{name}" if prefix else name for prefix, part in module.named_modules()
               if isinstance(part, KeepsFilters) for name in part.FILTERS}
    for name, tensor in tensors.items():
        keeps = name not in filters and (kept_dtypes is None or tensor.dtype in kept_dtypes)
        # The parameter stays the same object, for all parts that share it.
        slots[name].data = tensor.detach().to(tensor.dtype if keeps else slots[name].dtype)


def _check_fit(tensor: Any, slot: Tensor, what: str) -> None:
    if not isinstance(tensor, Tensor):
        raise UserError(f"{what} is stored as {type(tensor).__name__}")
    if tensor.shape != slot.shape:
        raise UserError(f"{what} is stored with the shape {list(tensor.shape)}, expected {list(slot.shape)}")
    if (tensor.is_floating_point(), tensor.is_complex()) != (slot.is_floating_point(), slot.is_complex()):
        raise UserError(f"{what} is stored as {tensor.dtype}, expected {slot.dtype}")


def _set_flags(module: torch.nn.Module, state: dict[str, Any]) -> None:
    trainable = set(state.get("trainable", ()))
    for name, param in module.named_parameters():
        param.requires_grad_(name in trainable)
    module.train(bool(state.get("training", False)))
    differs = set(state.get("training_differs", ()))
    for name, child in module.named_modules():
        if name in differs:
            child.training = not module.training


def plain(value: Any) -> Any:
    """Init arguments in the simplest types that say the same, so that files name few classes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


# ---------------------------------------------------------------------------------------------------------------------
# Limits of arguments that a file chose.

MAX_INT = 2 ** 20                        # no argument of a network is larger
LIMITS = dict(                           # (least, most) of arguments that a constructor's time and memory depend on
    img_resolution=(4, 2 ** 14), num_layers=(0, 1024), num_critical=(0, 1024), filter_size=(1, 16),
    lrelu_upsampling=(1, 4), first_cutoff=(0.5, 2 ** 12), first_stopband=(0.5, 2 ** 12), last_stopband_rel=(0.5, 16),
)
SPARE_ELEMENTS = 2 ** 22                 # of tensors that a constructor makes beside those that are stored
MAX_DEPTH = 8                            # of arguments within arguments


def _check_arguments(value: Any, name: str = "", depth: int = 0) -> None:
    """Raises UserError for numbers that are not finite, or larger than networks have."""
    if depth > MAX_DEPTH:
        raise UserError("the init arguments in the file are nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_arguments(item, str(key), depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _check_arguments(item, name, depth + 1)
    elif isinstance(value, (int, float)):
        least, most = LIMITS.get(name, (-MAX_INT, MAX_INT) if isinstance(value, int) else (-math.inf, math.inf))
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"the init argument {name[:40]!r} in the file is {value}; expected a finite number")
        if not least <= value <= most:
            raise UserError(f"the init argument {name[:40]!r} in the file is out of range; expected {least} to {most}")
