"""Helpers around modules, shapes and data order."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from dnnlib import EasyDict

# ---------------------------------------------------------------------------------------------------------------------
# Tensors.

@functools.lru_cache(maxsize=256)
def _cached_constant(data: bytes, np_dtype: str, np_shape: tuple, shape: tuple | None, dtype: torch.dtype, device: torch.device,
                     memory_format: torch.memory_format) -> torch.Tensor:
    value = torch.from_numpy(np.frombuffer(data, dtype=np_dtype).reshape(np_shape).copy()).to(dtype=dtype, device=device)
    value = value if shape is None else value.expand(shape)
    return value.contiguous(memory_format=memory_format)


def constant(value: Any, shape: Any = None, dtype: torch.dtype | None = None, device: Any = None,
             memory_format: torch.memory_format | None = None) -> torch.Tensor:
    """A tensor with that value, made and moved to the device once; do not write into it."""
    array = np.asarray(value)
    return _cached_constant(array.tobytes(), array.dtype.str, array.shape, None if shape is None else tuple(shape), dtype or torch.get_default_dtype(),
                            torch.device("cpu" if device is None else device), memory_format or torch.contiguous_format)


nan_to_num = torch.nan_to_num


def assert_shape(tensor: torch.Tensor, ref_shape: Any) -> None:
    """Raises AssertionError unless the shape is `ref_shape`, in which None stands for any size."""
    actual = tuple(tensor.shape)
    fits = len(actual) == len(ref_shape) and all(want is None or int(got) == int(want) for got, want in zip(actual, ref_shape))
    if not fits:
        raise AssertionError(f"tensor of shape {list(actual)}, expected {['any' if n is None else int(n) for n in ref_shape]}")


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Silences what torch.jit.trace says about values that become constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        yield


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

    Position k of the joint stream is item k mod n of the permutation of epoch k div n; rank r gets positions r, r + R, ...
    `start` [joint positions] continues a run. `window_size` of StyleGAN3 is accepted and has no meaning here.
    """

    def __init__(self, dataset: Any, rank: int = 0, num_replicas: int = 1, shuffle: bool = True, seed: int = 0, window_size: float = 0.5,
                 start: int = 0):
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

def params_and_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor for _, tensor in named_params_and_buffers(module)]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False) -> None:
    """Copies what both have under one name. With `require_all` it is an error if the source lacks something."""
    source = dict(named_params_and_buffers(src_module))
    with torch.no_grad():
        for name, tensor in named_params_and_buffers(dst_module):
            assert name in source or not require_all, f"the source has no {name}"
            if name in source:
                tensor.copy_(source[name])


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Raises AssertionError where a parameter or buffer differs between this rank and rank 0."""
    for name, tensor in named_params_and_buffers(module):
        full_name = f"{type(module).__name__}.{name}"
        if ignore_regex is not None and re.fullmatch(ignore_regex, full_name):
            continue
        mine = tensor.detach()
        mine = torch.nan_to_num(mine) if mine.is_floating_point() else mine
        other = mine.clone()
        torch.distributed.broadcast(other, src=0)
        assert torch.equal(mine, other), f"{full_name} differs from rank 0"


def print_module_summary(module: torch.nn.Module, inputs: Any, max_nesting: int = 3, skip_redundant: bool = True) -> Any:
    """Runs the module once and prints parameters, buffers, output shape and dtype of each submodule. Returns its outputs."""
    depth, rows, hooks = [0], [], []

    def enter(mod: torch.nn.Module, _inputs: Any) -> None:
        depth[0] += 1

    def leave(mod: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        depth[0] -= 1
        if depth[0] <= max_nesting:
            outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
            rows.append(EasyDict(mod=mod, outputs=[t for t in outputs if isinstance(t, torch.Tensor)]))

    for mod in module.modules():
        hooks += [mod.register_forward_pre_hook(enter), mod.register_forward_hook(leave)]
    outputs = module(*inputs)
    for hook in hooks:
        hook.remove()

    names = {mod: name for name, mod in module.named_modules()}
    seen: set[int] = set()
    table = [("Module", "Parameters", "Buffers", "Output shape", "Datatype")]
    for row in rows:
        fresh = [[t for t in tensors if id(t) not in seen] for tensors in (row.mod.parameters(), row.mod.buffers())]
        seen |= {id(t) for t in fresh[0] + fresh[1]}
        counts = [sum(t.numel() for t in tensors) for tensors in fresh]
        if skip_redundant and not any(counts) and row.mod is not module:
            continue
        shape = str(list(row.outputs[0].shape)) if row.outputs else "-"
        dtype = str(row.outputs[0].dtype).removeprefix("torch.") if row.outputs else "-"
        table.append((names[row.mod] or "<top-level>", *(str(n) if n else "-" for n in counts), shape, dtype))
    totals = [sum(t.numel() for t in tensors) for tensors in (module.parameters(), module.buffers())]
    table.append(("Total", *map(str, totals), "-", "-"))
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    print(f"\n{type(module).__name__}")
    for i, row in enumerate(table):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if i in (0, len(table) - 2):
            print("  ".join("-" * width for width in widths))
    print()
    return outputs
