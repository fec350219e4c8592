"""The training state: all that the next step depends on, so that a run goes on as if it had never stopped.

The file training-state-NNNNNN.pt (NNNNNN_III.pt, see `Counters.number`) holds the networks' tensors, the optimisers,
what ADA has counted, the mean of path lengths, the counters, and the random number generators of every rank. The
position in the data and all draws of a step follow from the counters (training.run.randomness).
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
from torch import Tensor

from dnnlib import UserError
from dnnlib.util import open_whole
from network_files.restricted_pickle import Allowed, RestrictedUnpickler
from torch_utils import distributed, misc
from training.run.ada import NoAugmentation
from training.run.phases import GeneratorEMA, Phase
from training.run.status import Status

FORMAT_VERSION = 1
STATES_KEPT = 2                          # by default; people keep networks


class Counters:
    """How far a run is, in steps, images and ticks. The first step is a tick, and so is the last."""

    def __init__(self, batch_size: int, total_kimg: float, kimg_per_tick: float, state: dict[str, Any] | None = None):
        """state: a training state to go on from; None: a new run."""
        counted = dict(cur_nimg=0, tick=0, tick_nimg=0) if state is None else state["status"]
        self.batch_size = batch_size
        self.total_nimg = total_kimg * 1000
        self.nimg_per_tick = kimg_per_tick * 1000
        self.step = 0 if state is None else state["step"]   # how many are done
        self.cur_nimg = counted["cur_nimg"]                 # images seen
        self.tick = counted["tick"]
        self.tick_nimg = counted["tick_nimg"]               # images seen when the tick began
        self.snapshot_nimg = counted.get("snapshot_nimg")   # at the last snapshot; None: no snapshot, or an old state

    def get_state(self) -> dict[str, int | None]:
        """All but `step`, which a state keeps by itself."""
        return {name: getattr(self, name) for name in ("cur_nimg", "tick", "tick_nimg", "snapshot_nimg")}

    @property
    def done(self) -> bool:
        return self.cur_nimg >= self.total_nimg

    @property
    def tick_ended(self) -> bool:
        is_first = self.tick == 0 and self.cur_nimg > 0
        return self.done or is_first or self.cur_nimg >= self.tick_nimg + self.nimg_per_tick

    @property
    def number(self) -> str:
        """Names the files of this moment: NNNNNN, the whole kimg. If the last snapshot has that name, NNNNNN_III with
        the images beyond.
        """
        kimg, images = divmod(self.cur_nimg, 1000)
        last = self.snapshot_nimg
        taken = last is not None and last < self.cur_nimg and last // 1000 == kimg
        return f"{kimg:06d}_{images:03d}" if taken else f"{kimg:06d}"

    def advance(self) -> None:
        """Counts a step."""
        self.step += 1
        self.cur_nimg += self.batch_size

    def end_tick(self, snapshot: bool = False) -> None:
        """Starts the next tick. snapshot: the networks of this one are saved."""
        self.tick += 1
        self.tick_nimg = self.cur_nimg
        self.snapshot_nimg = self.cur_nimg if snapshot else self.snapshot_nimg


@dataclass
class Progress:
    """All that changes in a run."""

    G: torch.nn.Module
    D: torch.nn.Module
    G_ema: GeneratorEMA
    phases: list[Phase]
    loss: Any
    augmentation: NoAugmentation
    counters: Counters
    status: Status

    def networks(self) -> dict[str, torch.nn.Module]:
        return dict(G=self.G, D=self.D, G_ema=self.G_ema.model)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {phase.name[0]: phase.opt for phase in self.phases}


def capture(progress: Progress) -> dict[str, Any]:
    """Plain values and the live tensors themselves, to be written before the next step. Call on all ranks."""
    return dict(
        format=FORMAT_VERSION,
        step=progress.counters.step,
        networks={name: dict(misc.named_params_and_buffers(module)) for name, module in progress.networks().items()},
        optimizers={name: opt.state_dict() for name, opt in progress.optimizers().items()},
        pl_mean=progress.loss.pl_mean,
        augmentation=progress.augmentation.get_state(),
        status={**progress.counters.get_state(), **progress.status.get_state()},
        random=distributed.gather(_random_state()),
    )


@contextlib.contextmanager
def understood(path: str) -> Iterator[None]:
    """Around code that uses a state's values: if they do not fit, raises a UserError that names the file."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, UserError):
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the state does not fit this run ({type(error).__name__}: {what}); "
                        "use another one of the run") from error


def restore(progress: Progress, state: dict[str, Any], path: str, same_augmentation: bool = True) -> None:
    """The opposite of capture(), except for counters and status, whose constructors take the state. path: for messages.
    """
    for name, module in progress.networks().items():
        _copy_tensors(state["networks"][name], dict(misc.named_params_and_buffers(module)), f"{path}: {name}")
    for name, opt in progress.optimizers().items():
        rates = [group["lr"] for group in opt.param_groups], [group["betas"] for group in opt.param_groups]
        opt.load_state_dict(state["optimizers"][name])
        for group, lr, betas in zip(opt.param_groups, *rates):         # the configuration's: they may have changed
            group.update(lr=lr, betas=betas)
    progress.loss.pl_mean.copy_(state["pl_mean"])
    if same_augmentation:
        progress.augmentation.set_state(state["augmentation"])
    rank = distributed.get_rank()
    if rank < len(state["random"]):
        _set_random_state(state["random"][rank])


def check_networks(state: dict[str, Any], networks: dict[str, torch.nn.Module], path: str) -> None:
    """Raises UserError if the state's tensors do not fit these networks, which may live on the meta device."""
    for name, module in networks.items():
        _check_tensors(state["networks"][name], dict(misc.named_params_and_buffers(module)), f"{path}: {name}")


def _check_tensors(source: dict[str, Tensor], target: dict[str, Tensor], what: str) -> None:
    differ = [name for name in {**target, **source} if name not in source or name not in target
              or source[name].shape != target[name].shape]
    if differ:
        raise UserError(f"{what} has another structure than this run's, in {len(differ)} tensors such as "
                        f"{differ[0]!r}; a state continues the same networks only: start from weights with "
                        "--resume=network-snapshot-*.pkl")


@torch.no_grad()
def _copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor], what: str) -> None:
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
    """number: from `Counters.number`."""
    return os.path.join(run_dir, f"training-state-{number}.pt")


def save(state: dict[str, Any], path: str, config: dict) -> None:
    """Writes the file whole or not at all. It keeps `config`, which a run that goes on compares with its own."""
    with open_whole(path) as stream:
        sink = _Sink(stream)
        try:
            torch.save(dict(state, config=json.dumps(config)), sink)
        finally:
            sink.check()                                # the original error, not torch's


class _Sink:
    """A stream for torch.save that raises nothing while it is written to, since an exception would end the process in
    torch's C++ side. `check` raises the error afterwards.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self._error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                return self._stream.write(data)
            except BaseException as error:             # also an interrupt
                self._error = error
        return len(memoryview(data).cast("B"))

    def flush(self) -> None:
        pass                             # open_whole does it

    def check(self) -> None:
        if self._error is not None:
            raise self._error


KINDS = dict(format=int, step=int, networks=dict, optimizers=dict, pl_mean=Tensor, augmentation=dict, status=dict,
             random=list, config=str)
MAX_PICKLE_BYTES = 64 * 2 ** 20          # of a state without its tensors
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
    """Loads a state to the CPU. Runs nothing in the file. Raises UserError unless it is a whole training state.

    mmap: leave the tensors on the disk.
    """
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and _is_utf8(path))
    except UserError as error:
        raise UserError(f"{path}: no training state: {error.message}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:           # a damaged archive makes torch raise nearly anything
        raise UserError(f"{path}: no training state, or damaged ({type(error).__name__}); "
                        "use another one of the run") from error
    if not isinstance(state, dict) or not KINDS.keys() <= state.keys() or not isinstance(state["format"], int):
        raise UserError(f"{path}: no training state; expected a training-state-*.pt that train.py has written")
    if state["format"] != FORMAT_VERSION:
        raise UserError(f"{path}: a training state of format {state['format']}; "
                        f"this version of the project reads {FORMAT_VERSION}")
    _check_kinds(state, path)
    return state


def _is_utf8(path: str) -> bool:
    """Whether the name is UTF-8; torch maps no other files. Old systems and the locale C have other names."""
    try:
        path.encode()
        return True
    except UnicodeEncodeError:
        return False


def _check_archive(path: str) -> None:
    """Raises UserError if the file could make torch.load allocate more than its size, or names anything but tensors."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = [entry.filename for entry in entries
                  if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size]
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
    networks = [] if wrong else state["networks"].values()
    if not all(isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values())
               for tensors in networks):
        wrong = ["networks"]
    if not wrong and not isinstance(state["status"].get("cur_nimg"), int):
        wrong = ["status"]
    try:
        if not wrong and not isinstance(json.loads(state["config"]), dict):
            wrong = ["config"]
    except (ValueError, RecursionError):
        wrong = ["config"]
    if wrong:
        raise UserError(f"{path}: damaged: its {wrong[0]!r} is of another kind than train.py writes; "
                        "use another one of the run")


def states_of(run_dir: str) -> list[str]:
    """All states of a run, the newest first."""
    return _numbered(run_dir, "training-state-*.pt")[::-1]


def newest(run_dir: str, set_aside: bool = False) -> tuple[str | None, list[str]]:
    """The newest state that can be read, or None; and notes about newer ones that cannot.

    set_aside: rename these, so that they no longer count as the newest. The caller holds the run's lock.
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
    """Raises UserError if bytes have changed since they were written, which torch.load does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: no training state, or damaged ({type(error).__name__}); "
                        "use another one of the run") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged (in {damaged}); use another one of the run")


def prune(run_dir: str, keep: int | None) -> None:
    """Removes all but the newest `keep` networks and states. None: keeps all networks, and STATES_KEPT states."""
    removed = _numbered(run_dir, "training-state-*.pt")[:-(keep or STATES_KEPT)]
    if keep is not None:
        removed += _numbered(run_dir, "network-snapshot-*.pkl")[:-keep]
    for path in removed:
        os.remove(path)


def images_of(name: str) -> int | None:
    """How many images a network or state of this name had seen, in whole kimg if the name has no more. None: the name
    does not say.
    """
    match = re.search(r"-(\d+)(?:_(\d{3}))?\.\w+$", name)
    return None if match is None else int(match[1]) * 1000 + int(match[2] or 0)


def _numbered(run_dir: str, pattern: str) -> list[str]:
    paths = glob.glob(os.path.join(glob.escape(run_dir), pattern))
    return sorted((path for path in paths if images_of(path) is not None), key=images_of)
