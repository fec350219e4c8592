"""training-state-NNNNNN.pt (NNNNNN_III.pt, see Status.number): all that the next step depends on, so that a run goes
on as if it had never stopped.

The networks' tensors, the optimisers, what ADA has counted, the mean of path lengths, counters, and the generators of random numbers of
every rank. The position in the data and all draws of a step follow from the counters (training.randomness).
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import random
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.util import open_whole
from network_files.restricted_pickle import Allowed, RestrictedUnpickler
from torch_utils import distributed, misc
from training.ada import NoAugmentation
from training.ema import GeneratorEMA
from training.phases import Phase
from training.status import Status

FORMAT_VERSION = 1
STATES_KEPT = 2                          # of those that a run has written; networks are what people keep


@dataclass
class Progress:
    """All that changes in a run."""

    G: torch.nn.Module
    D: torch.nn.Module
    G_ema: GeneratorEMA
    phases: list[Phase]
    loss: Any
    augmentation: NoAugmentation
    status: Status
    step: int = 0                        # how many are done

    def networks(self) -> dict[str, torch.nn.Module]:
        return dict(G=self.G, D=self.D, G_ema=self.G_ema.model)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {phase.name[0]: phase.opt for phase in self.phases}


def capture(progress: Progress) -> dict[str, Any]:
    """Plain values and the live tensors themselves: to be written before the next step. All ranks must call it."""
    return dict(
        format=FORMAT_VERSION,
        step=progress.step,
        networks={name: dict(misc.named_params_and_buffers(module)) for name, module in progress.networks().items()},
        optimizers={name: opt.state_dict() for name, opt in progress.optimizers().items()},
        pl_mean=progress.loss.pl_mean,
        augmentation=progress.augmentation.get_state(),
        status=progress.status.get_state(),
        random=distributed.gather(_random_state()),
    )


@contextlib.contextmanager
def understood(path: str) -> Iterator[None]:
    """Within, what a state holds is put in its places; where it does not fit, that is a UserError naming the file."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, UserError):
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the state does not fit this run ({type(error).__name__}: {what}); use another one of the run") from error


def restore(progress: Progress, state: dict[str, Any], path: str, same_augmentation: bool = True) -> None:
    """The opposite of capture(), but for the status, which is built from its part. `path` is for messages."""
    for name, module in progress.networks().items():
        _copy_tensors(state["networks"][name], dict(misc.named_params_and_buffers(module)), f"{path}: {name}")
    for name, opt in progress.optimizers().items():
        rates = [group["lr"] for group in opt.param_groups], [group["betas"] for group in opt.param_groups]
        opt.load_state_dict(state["optimizers"][name])
        for group, lr, betas in zip(opt.param_groups, *rates):         # the configuration's, which may have changed
            group.update(lr=lr, betas=betas)
    progress.loss.pl_mean.copy_(state["pl_mean"])
    if same_augmentation:
        progress.augmentation.set_state(state["augmentation"])
    progress.step = state["step"]
    rank = distributed.get_rank()
    if rank < len(state["random"]):
        _set_random_state(state["random"][rank])


def check_networks(state: dict[str, Any], networks: dict[str, torch.nn.Module], path: str) -> None:
    """UserError where these networks, which may live on the meta device, cannot take what the state holds."""
    for name, module in networks.items():
        _check_tensors(state["networks"][name], dict(misc.named_params_and_buffers(module)), f"{path}: {name}")


def _check_tensors(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], what: str) -> None:
    differ = [name for name in {**target, **source} if name not in source or name not in target or source[name].shape != target[name].shape]
    if differ:
        raise UserError(f"{what} has another structure than this run's, in {len(differ)} tensors such as {differ[0]!r}; a state continues the same "
                        "networks only: start from weights with --resume=network-snapshot-*.pkl")


@torch.no_grad()
def _copy_tensors(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], what: str) -> None:
    _check_tensors(source, target, what)
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return dict(torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
                numpy=(str(name), torch.from_numpy(keys.astype(np.int64)), *rest), python=random.getstate())


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


# ---------------------------------------------------------------------------------------------------------------------
# Files.

def path_of(run_dir: str, number: str) -> str:
    """number: Status.number."""
    return os.path.join(run_dir, f"training-state-{number}.pt")


def save(state: dict[str, Any], path: str, config: dict) -> None:
    """Writes the file whole or not at all. `config` is kept to compare with that of whoever goes on."""
    with open_whole(path) as stream:
        sink = _Sink(stream)
        try:
            torch.save(dict(state, config=json.dumps(config)), sink)
        finally:
            sink.check()                                # rather than what torch makes of it


class _Sink:
    """A stream for torch.save, which must not meet exceptions: its C++ side ends the process. `check` raises what was met."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                return self._stream.write(data)
            except BaseException as error:             # an interrupt, too
                self._error = error
        return len(memoryview(data).cast("B"))

    def flush(self) -> None:
        pass                             # open_whole does

    def check(self) -> None:
        if self._error is not None:
            raise self._error


KINDS = dict(format=int, step=int, networks=dict, optimizers=dict, pl_mean=torch.Tensor, augmentation=dict, status=dict, random=list, config=str)
MAX_PICKLE_BYTES = 64 * 2 ** 20          # of what is no tensor
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED = {allowed.name: allowed for allowed in (
    Allowed("collections.OrderedDict", lambda: {}),
    *(Allowed(f"torch._utils.{name}", lambda *args: None) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(Allowed(f"torch.{kind}Storage") for kind in _STORAGES))}


class _Trial(RestrictedUnpickler):
    """Reads a state's pickle without its tensors."""

    def persistent_load(self, pid: Any) -> None:
        return None


def load(path: str, mmap: bool = False) -> dict[str, Any]:
    """A state on the CPU; nothing in the file is run. UserError where it is none, or is damaged. `mmap`: for a look, since the tensors stay on the disk."""
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and _is_utf8(path))
    except UserError as error:
        raise UserError(f"{path}: no training state: {error.message}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:           # a damaged archive makes torch raise nearly anything
        raise UserError(f"{path}: no training state, or damaged ({type(error).__name__}); use another one of the run") from error
    if not isinstance(state, dict) or not KINDS.keys() <= state.keys() or not isinstance(state["format"], int):
        raise UserError(f"{path}: no training state; expected a training-state-*.pt that train.py has written")
    if state["format"] != FORMAT_VERSION:
        raise UserError(f"{path}: a training state of format {state['format']}; this version of the project reads {FORMAT_VERSION}")
    _check_kinds(state, path)
    return state


def _is_utf8(path: str) -> bool:
    """torch maps no file with another name, as there are in folders from old systems and in the locale C."""
    try:
        path.encode()
        return True
    except UnicodeEncodeError:
        return False


def _check_archive(path: str) -> None:
    """UserError where the file could make torch.load allocate more than its size, or name anything but tensors."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size]
        if packed:
            raise UserError(f"{packed[0][:60]!r} in it is compressed, which train.py never does")
        if len({entry.filename for entry in entries}) < len(entries):
            raise UserError("names appear twice in it")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise UserError(f"it has {len(pickles)} pickles, expected one of at most {MAX_PICKLE_BYTES >> 20} MiB")
        _Trial(io.BytesIO(archive.read(pickles[0])), _ALLOWED).load()


def _check_kinds(state: dict[str, Any], path: str) -> None:
    wrong = [name for name, kind in KINDS.items() if not isinstance(state[name], kind)]
    if not wrong and not all(isinstance(tensors, dict) and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
                             for tensors in state["networks"].values()):
        wrong = ["networks"]
    if not wrong and not isinstance(state["status"].get("cur_nimg"), int):
        wrong = ["status"]
    try:
        if not wrong and not isinstance(json.loads(state["config"]), dict):
            wrong = ["config"]
    except (ValueError, RecursionError):
        wrong = ["config"]
    if wrong:
        raise UserError(f"{path}: damaged: its {wrong[0]!r} is of another kind than train.py writes; use another one of the run")


def states_of(run_dir: str) -> list[str]:
    """All states of a run, the newest first."""
    return _numbered(run_dir, "training-state-*.pt")[::-1]


def newest(run_dir: str, set_aside: bool = False) -> tuple[str | None, list[str]]:
    """The newest state that can be read, None where there is none; and what to say about others. `set_aside`: renames those, so that they do not
    count as the newest any more; for whoever holds the run's lock.
    """
    notes = []
    for path in states_of(run_dir):
        try:
            _check_sums(path)
            load(path, mmap=True)
            return path, notes
        except UserError as error:
            notes.append(f"Warning: {error.message}; trying the one before.")
            if set_aside:
                os.replace(path, path + ".damaged")
    return None, notes


def _check_sums(path: str) -> None:
    """UserError where bytes have changed since they were written; torch.load does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: no training state, or damaged ({type(error).__name__}); use another one of the run") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged (in {damaged}); use another one of the run")


def prune(run_dir: str, keep: int | None) -> None:
    """Leaves the newest `keep` networks and states; None: all networks, and STATES_KEPT states."""
    removed = _numbered(run_dir, "training-state-*.pt")[:-(keep or STATES_KEPT)]
    if keep is not None:
        removed += _numbered(run_dir, "network-snapshot-*.pkl")[:-keep]
    for path in removed:
        os.remove(path)


def images_of(name: str) -> int | None:
    """How many images a network or state that is called so had seen; of a whole-kimg name the kimg count. None: the
    name does not say.
    """
    match = re.search(r"-(\d+)(?:_(\d{3}))?\.\w+$", name)
    return None if match is None else int(match[1]) * 1000 + int(match[2] or 0)


def _numbered(run_dir: str, pattern: str) -> list[str]:
    paths = glob.glob(os.path.join(glob.escape(run_dir), pattern))
    return sorted((path for path in paths if images_of(path) is not None), key=images_of)
