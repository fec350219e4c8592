"""What a stored module consists of beside its init arguments: named tensors and flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from dnnlib.util import UserError
from torch_utils.misc import named_params_and_buffers
from torch_utils.tensor_bytes import StoredTensor


def get_state(module: torch.nn.Module) -> dict[str, Any]:
    """A plain dict: `tensors` by name, `training` flag and the submodules of another mind, the `trainable` parameters."""
    return dict(
        tensors={name: StoredTensor(tensor) for name, tensor in named_params_and_buffers(module)},
        training=module.training,
        training_differs=[name for name, child in module.named_modules() if child.training != module.training],
        trainable=[name for name, param in module.named_parameters() if param.requires_grad],
    )


def set_state(module: torch.nn.Module, state: dict[str, Any], owner: str, strict: bool = True) -> None:
    """Puts tensors and flags in their places; the tensors become the module's own, without a copy.

    Names and shapes must agree, else UserError naming `owner` and the tensor, and nothing has changed. With strict=False
    the module keeps its own tensors where the state has none.
    """
    tensors = state.get("tensors")
    if not isinstance(tensors, dict):
        raise UserError(f"{owner}: the file holds no tensors for it")
    slots = dict(named_params_and_buffers(module))
    missing = [name for name in slots if name not in tensors]
    if strict and missing:
        lasting = module.state_dict().keys()           # the constructor has computed what is not in there
        missing = [name for name in missing if name in lasting]
        if missing:
            raise UserError(f"{owner}: the file lacks its tensor {_first(missing)}")
    extra = [str(name) for name in tensors if name not in slots]
    if extra:
        raise UserError(f"{owner} has no such tensor as {_first(extra)} in the file")
    for name, tensor in tensors.items():
        _check_fit(tensor, slots[name], f"{owner}: its tensor {name!r}")

    for name, tensor in tensors.items():
        slots[name].data = tensor.detach()             # the parameter object stays, and with it whatever shares it
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


def construct(cls: type, args: Sequence, kwargs: dict, skip_random_init: bool) -> torch.nn.Module:
    """An instance on the CPU whose tensors are about to be replaced. Leaves torch's random state alone.

    With `skip_random_init` random tensors are left uninitialised, for classes that keep them all as parameters or buffers.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if not skip_random_init:
            return cls(*args, **kwargs)
        with _NoRandomNumbers():
            return cls(*args, **kwargs)


class _NoRandomNumbers(TorchFunctionMode):
    """Within, torch.randn and torch.rand hand out uninitialised memory, and scaling that by a number leaves it as it is.

    Touching the memory would cost more than reading the file.
    """

    _SCALING = (torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.div, torch.Tensor.__truediv__)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.randn, torch.rand):
            kwargs.pop("generator", None)
            tensor = torch.empty(*args, **kwargs)
            tensor.is_uninitialised = True
            return tensor
        if func in self._SCALING and getattr(args[0], "is_uninitialised", False) and isinstance(args[1], (int, float)):
            return args[0]
        return func(*args, **kwargs)
