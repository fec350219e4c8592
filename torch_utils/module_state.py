"""What a stored module consists of beside its init arguments: named tensors and flags."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from dnnlib.util import UserError
from torch_utils.misc import KeepsFilters, named_params_and_buffers
from torch_utils.tensor_bytes import StoredTensor


def get_state(module: torch.nn.Module) -> dict[str, Any]:
    """A plain dict: `tensors` by name, `training` flag and the submodules of another mind, the `trainable` parameters."""
    return dict(
        tensors={name: StoredTensor(tensor) for name, tensor in named_params_and_buffers(module)},
        training=module.training,
        training_differs=[name for name, child in module.named_modules() if child.training != module.training],
        trainable=[name for name, param in module.named_parameters() if param.requires_grad],
    )


def set_state(module: torch.nn.Module, state: dict[str, Any], owner: str, may_lack: str = "",
              kept_dtypes: Collection[torch.dtype] | None = None) -> None:
    """Puts tensors and flags in their places; the tensors become the module's own, without a copy unless they take on its dtypes.

    Tensors of `kept_dtypes` (None: all) keep them, save for filters (`misc.KeepsFilters`); others take on the module's.

    Names and shapes must agree, else UserError naming `owner` and the tensor, and nothing has changed. Where the state lacks
    a tensor whose name matches the regular expression `may_lack`, the module keeps its own.
    """
    tensors = state.get("tensors")
    if not isinstance(tensors, dict):
        raise UserError(f"{owner}: the file holds no tensors for it")
    slots = dict(named_params_and_buffers(module))
    missing = [name for name in slots if name not in tensors and not (may_lack and re.fullmatch(may_lack, name))]
    if missing:
        lasting = module.state_dict().keys()           # the constructor has computed what is not in there
        missing = [name for name in missing if name in lasting]
        if missing:
            raise UserError(f"{owner}: the file lacks its tensor {_first(missing)}")
    extra = [str(name) for name in tensors if name not in slots]
    if extra:
        raise UserError(f"{owner} has no such tensor as {_first(extra)} in the file")
    for name, tensor in tensors.items():
        _check_fit(tensor, slots[name], f"{owner}: its tensor {name!r}")

    filters = {f"{prefix}.{name}" if prefix else name for prefix, part in module.named_modules()
               if isinstance(part, KeepsFilters) for name in part.FILTERS}
    for name, tensor in tensors.items():
        keeps = name not in filters and (kept_dtypes is None or tensor.dtype in kept_dtypes)
        # The parameter object stays, and with it whatever shares it.
        slots[name].data = tensor.detach().to(tensor.dtype if keeps else slots[name].dtype)
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


def _check_fit(tensor: Any, slot: torch.Tensor, what: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{what} is stored as {type(tensor).__name__}")
    if tensor.shape != slot.shape:
        raise UserError(f"{what} is stored with the shape {list(tensor.shape)}, expected {list(slot.shape)}")
    if (tensor.is_floating_point(), tensor.is_complex()) != (slot.is_floating_point(), slot.is_complex()):
        raise UserError(f"{what} is stored as {tensor.dtype}, expected {slot.dtype}")


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


# ---------------------------------------------------------------------------------------------------------------------
# Building a module from arguments that a file chose.

MAX_INT = 2 ** 20                        # no argument of a network is larger
LIMITS = dict(                           # of arguments that multiply what constructors compute beside torch's tensors: names -> least, most
    img_resolution=(4, 2 ** 14), num_layers=(0, 1024), num_critical=(0, 1024), filter_size=(1, 16), lrelu_upsampling=(1, 4),
    first_cutoff=(0.5, 2 ** 12), first_stopband=(0.5, 2 ** 12), last_stopband_rel=(0.5, 16),
)
SPARE_ELEMENTS = 2 ** 22                 # of tensors that a constructor makes beside those that are stored
MAX_DEPTH = 8                            # of arguments within arguments


def construct(cls: type, args: Sequence, kwargs: dict, is_ours: bool, stored_elements: int | None = None) -> torch.nn.Module:
    """An instance on the CPU whose tensors are about to be replaced. Leaves torch's random state alone.

    is_ours: a class of this project, which keeps all random tensors as parameters or buffers, so that they are left uninitialised here;
    its arguments have limits. stored_elements: how many numbers there are to replace them; UserError where the arguments ask for
    far more. None: neither limit.
    """
    budget = math.inf
    if stored_elements is not None:
        if is_ours:
            _check_arguments(dict(inspect.signature(cls).bind_partial(*args, **kwargs).arguments))
        budget = 2 * stored_elements + SPARE_ELEMENTS
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _Factories(is_ours, budget):
        return cls(*args, **kwargs)


def _check_arguments(value: Any, name: str = "", depth: int = 0) -> None:
    """Numbers that are finite and of a size that networks have."""
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


class _Factories(TorchFunctionMode):
    """Within, new tensors count against a budget of elements; with `skip_random_init` random ones are uninitialised memory, and scaling those by a
    number leaves them as they are. Touching the memory would cost more than reading the file.
    """

    _SIZED = (torch.randn, torch.rand, torch.zeros, torch.ones, torch.empty)
    _SCALING = (torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.div, torch.Tensor.__truediv__)

    def __init__(self, skip_random_init: bool, budget: float):
        super().__init__()
        self.skip_random_init = skip_random_init
        self.budget = budget

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._SIZED:
            size = kwargs.get("size", args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args)
            self._spend(math.prod(int(n) for n in size))
        elif func is torch.full:
            self._spend(math.prod(int(n) for n in kwargs.get("size", args[:1] and args[0])))
        if self.skip_random_init:
            if func in (torch.randn, torch.rand):
                kwargs.pop("generator", None)
                tensor = torch.empty(*args, **kwargs)
                tensor.is_uninitialised = True
                return tensor
            if func in self._SCALING and getattr(args[0], "is_uninitialised", False) and isinstance(args[1], (int, float)):
                return args[0]
        return func(*args, **kwargs)

    def _spend(self, elements: int) -> None:
        self.budget -= max(elements, 1)
        if self.budget < 0:
            raise UserError("the init arguments ask for far more numbers than the file has")
