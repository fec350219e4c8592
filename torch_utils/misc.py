"""Helpers for tensors, precision, the order of data, and modules."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils import distributed

# ---------------------------------------------------------------------------------------------------------------------
# Tensors.

@functools.lru_cache(maxsize=256)
def _cached_constant(data: bytes, np_dtype: str, np_shape: tuple, shape: tuple | None, dtype: torch.dtype,
                     device: torch.device, memory_format: torch.memory_format) -> Tensor:
    array = np.frombuffer(data, dtype=np_dtype).reshape(np_shape).copy()
    value = torch.from_numpy(array).to(dtype=dtype, device=device)
    value = value if shape is None else value.expand(shape)
    return value.contiguous(memory_format=memory_format)


def constant(value: Any, shape: Any = None, dtype: torch.dtype | None = None, device: Any = None,
             memory_format: torch.memory_format | None = None) -> Tensor:
    """A tensor with that value. It is made and moved to the device once, so do not write into it."""
    array = np.asarray(value)
    return _cached_constant(array.tobytes(), array.dtype.str, array.shape, None if shape is None else tuple(shape),
                            dtype or torch.get_default_dtype(), torch.device("cpu" if device is None else device),
                            memory_format or torch.contiguous_format)


nan_to_num = torch.nan_to_num
symbolic_assert = torch._assert          # an assertion that tracing keeps


def assert_shape(tensor: Tensor, ref_shape: Any) -> None:
    """Raises AssertionError unless the shape is `ref_shape`, in which None stands for any size."""
    actual = tuple(tensor.shape)
    same = (want is None or int(got) == int(want) for got, want in zip(actual, ref_shape))
    if len(actual) != len(ref_shape) or not all(same):
        expected = ["any" if n is None else int(n) for n in ref_shape]
        raise AssertionError(f"tensor of shape {list(actual)}, expected {expected}")


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Silences torch.jit.trace's warnings about values that become constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        yield


def common_batch(num_latents: int, num_others: int, others: str) -> int:
    """The batch size of latents and their labels or cameras (`others`), either of which may be one for all. Raises
    ValueError if the numbers do not fit.
    """
    if num_latents != num_others and 1 not in (num_latents, num_others):
        raise ValueError(f"{num_others} {others} for {num_latents} latents; give as many, or one for all")
    return num_latents if num_others == 1 else num_others


def autocast_is_on(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


# Whether autocast is on for any kind of device. True for a torch that cannot tell.
any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def own_precision(forward: Callable) -> Callable:
    """Decorator of functions that choose their precision themselves: autocast is off inside. The device is that of the
    first tensor among the arguments.
    """
    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not any_autocast():           # usual, and asked some hundred times in a step of a small network
            return forward(*args, **kwargs)
        device_type = next((arg.device.type for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)), None)
        if device_type is None or not autocast_is_on(device_type):
            return forward(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return forward(*args, **kwargs)
    return wrapper


def profiled_function(fn: Callable) -> Callable:
    """Decorator: the function appears under its own name in torch.profiler."""
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)
    return wrapper


# ---------------------------------------------------------------------------------------------------------------------
# Order of the data.

class InfiniteSampler(torch.utils.data.Sampler):
    """Endless dataset indices for rank `rank` of `num_replicas`, as a pure function of (seed, position).

    Position k of the joint stream is item k mod n of the permutation of epoch k div n; rank r gets positions r, r + R,
    ... `start` [joint positions] continues a run. StyleGAN3's `window_size` is accepted and ignored.
    """

    def __init__(self, dataset: Any, rank: int = 0, num_replicas: int = 1, shuffle: bool = True, seed: int = 0,
                 window_size: float = 0.5, start: int = 0):
        assert len(dataset) > 0 and 0 <= rank < num_replicas and start >= 0, (len(dataset), rank, num_replicas, start)
        super().__init__()
        self.size = len(dataset)
        self.rank = rank
        self.num_replicas = num_replicas
        self.shuffle = shuffle
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        epoch, order = -1, None
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                order = self._order(epoch)
            yield int(order[position % self.size])
            position += self.num_replicas

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch]))).permutation(self.size)


# ---------------------------------------------------------------------------------------------------------------------
# Modules.

class KeepsFilters(torch.nn.Module):
    """A module whose buffers named FILTERS stay float32 through .half(), .double() and the like, as the ops want them.
    """

    FILTERS = ("resample_filter", "up_filter", "down_filter")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        before = {name: self._buffers[name] for name in self.FILTERS if self._buffers.get(name) is not None}
        super()._apply(*args, **kwargs)
        for name, f in before.items():
            if self._buffers[name].dtype != f.dtype:
                self._buffers[name] = f.to(self._buffers[name].device)
        return self


def params_and_buffers(module: torch.nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in named_params_and_buffers(module)]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(src_module: torch.nn.Module, dst_module: torch.nn.Module,
                            require_all: bool = False) -> None:
    """Copies all tensors whose names both modules have. With `require_all`, the source must have all of the target's.
    """
    source = dict(named_params_and_buffers(src_module))
    with torch.no_grad():
        for name, tensor in named_params_and_buffers(dst_module):
            assert name in source or not require_all, f"the source has no {name}"
            if name in source:
                tensor.copy_(source[name])


@contextlib.contextmanager
def ddp_sync(module: torch.nn.Module, sync: bool) -> Iterator[None]:
    """Without `sync`, backward passes inside do not sum a DistributedDataParallel module's gradients over processes.

    Not used in this project, which sums gradients once per step. Scripts written for StyleGAN3 call it.
    """
    assert isinstance(module, torch.nn.Module), type(module)
    waits = isinstance(module, torch.nn.parallel.DistributedDataParallel) and not sync
    with module.no_sync() if waits else contextlib.nullcontext():
        yield


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Raises AssertionError on a rank whose parameters or buffers differ from those of rank 0, and names the first.
    Each rank must call it.

    NaN equals NaN. Tensors whose "Class.name" matches `ignore_regex` as a whole are left out.
    """
    groups: dict[torch.dtype, dict[str, Tensor]] = {}
    for name, tensor in named_params_and_buffers(module):
        label = f"{type(module).__name__}.{name}"
        if ignore_regex is None or not re.fullmatch(ignore_regex, label):
            groups.setdefault(tensor.dtype, {})[label] = tensor.detach()

    differing = []
    for dtype, group in groups.items():
        mine = torch.cat([tensor.flatten() for tensor in group.values()])
        mine = mine.byte() if dtype == torch.bool else mine         # not every backend sends booleans
        theirs = mine.clone()
        distributed.broadcast_([theirs])
        unequal = (mine != theirs) & ~((mine != mine) & (theirs != theirs))
        parts = unequal.split([tensor.numel() for tensor in group.values()])
        differing += [label for label, part in zip(group, parts) if part.any()]
    more = f", as do {len(differing) - 1} more" if len(differing) > 1 else ""
    assert not differing, f"rank {distributed.get_rank()}: {differing[0]} differs from rank 0{more}"


# ---------------------------------------------------------------------------------------------------------------------
# Summary of a module.

@dataclass
class ModuleCall:
    """An observed forward call."""

    module: torch.nn.Module
    depth: int                               # the number of observed calls around it
    output: str = ""                         # shapes and dtypes of the tensors that it returned


@contextlib.contextmanager
def observe_calls(module: torch.nn.Module) -> Iterator[list[ModuleCall]]:
    """While open, lists the forward calls of the module and of all inside it, in the order in which they begin."""
    calls: list[ModuleCall] = []
    running: list[ModuleCall] = []

    def begin(part: torch.nn.Module, _args: Any) -> None:
        call = ModuleCall(part, depth=len(running))
        calls.append(call)
        running.append(call)

    def end(_part: torch.nn.Module, _args: Any, result: Any) -> None:
        running.pop().output = _describe_tensors(result)

    with contextlib.ExitStack() as hooks:
        for part in module.modules():
            hooks.enter_context(part.register_forward_pre_hook(begin))
            hooks.enter_context(part.register_forward_hook(end))
        yield calls


def print_module_summary(module: torch.nn.Module, inputs: Any, max_nesting: int = 3,
                         skip_redundant: bool = True) -> Any:
    """Calls `module(*inputs)`, prints the calls inside it as an indented tree, and returns the outputs.

    Each line counts the values of all that lies in the module, its parts included. `max_nesting`: how deep the tree
    goes. With `skip_redundant`, modules without any values and repeated calls are left out.
    """
    with observe_calls(module) as calls:
        outputs = module(*inputs)

    names = {part: name for name, part in module.named_modules()}
    lines = [("layer", "type", "weights", "state", "output")]
    shown = set()
    for call in calls:
        both = call.module.parameters(), call.module.buffers()
        sizes = [sum(tensor.numel() for tensor in tensors) for tensors in both]
        redundant = call.module in shown or not any(sizes)
        if call.depth > max_nesting or (skip_redundant and redundant and call.depth > 0):
            continue
        shown.add(call.module)
        layer = "  " * call.depth + (names[call.module] or "(whole)")
        lines.append((layer, type(call.module).__name__, *(f"{size:,}" if size else "" for size in sizes), call.output))
    print("\n" + _align(lines, right=(2, 3)) + "\n")
    return outputs


def _describe_tensors(value: Any) -> str:
    values = value if isinstance(value, (tuple, list)) else [value]
    tensors = [item for item in values if isinstance(item, Tensor)]
    return ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in tensors)


def _align(lines: list[tuple[str, ...]], right: tuple[int, ...]) -> str:
    """Text in aligned columns: those numbered in `right` to the right, the others to the left."""
    columns = []
    for index, column in enumerate(zip(*lines)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if index in right else cell.ljust(width) for cell in column])
    return "\n".join("   ".join(line).rstrip() for line in zip(*columns))
