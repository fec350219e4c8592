"""Which run does a command continue? The newest of the same configuration, from its newest state that can be read."""

from __future__ import annotations

import contextlib
import copy
import glob
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dnnlib import EasyDict, UserError
from dnnlib.util import parse_json
from training import training_state
from training.config import FREE, FREE_OF_DATA, Options, keep_camera_training, keep_noise
from training.status import read_stats

try:
    import fcntl
except ImportError:                      # Windows: runs are not locked there
    fcntl = None

Networks = Callable[[EasyDict], tuple[Any, Any]]        # configuration -> G and D without memory for their weights
SHAPES = ("img_resolution", "img_channels", "label_dim")
LOCK_PATIENCE_S = 5.0                    # for a process that is just being killed
STARTS = ("resume_state", "resume_pkl")                  # where a run began
MOST_CHANGES = 5                         # of a configuration that a line names


@dataclass
class Earlier:
    """A run that can go on."""

    run_dir: str
    config: EasyDict                     # of its training_options.json
    state: str | None                    # None: it ended before it had one, and begins again
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def find_run(outdir: str, config: EasyDict) -> Earlier | None:
    """The newest run below `outdir` with the fingerprint of `config`; None where there is none that could go on."""
    for run_dir, old in _runs(outdir):
        if old.get("fingerprint") != config.fingerprint:
            continue
        state, notes = training_state.newest(run_dir)
        if state is None and training_state.states_of(run_dir):
            raise UserError(f"{run_dir}: none of its states can be read ({notes[-1]}); start another run with --new")
        seen = 0 if state is None else training_state.load(state, mmap=True)["status"]["cur_nimg"]
        finished = seen >= config.total_kimg * 1000 and _has_last_tick(run_dir, seen)
        return Earlier(run_dir, old, state, finished, notes)
    return None


def describe_other(outdir: str, config: EasyDict, options: Options, make_networks: Networks) -> list[str]:
    """What to say of a new run where an earlier one below `outdir` could go on with this configuration: people
    change an option and expect it to.
    """
    for run_dir, old in _runs(outdir):
        trial = _as_continued(run_dir, old, config, options, make_networks)
        if trial is not None:
            changes = [f"{key} {before} -> {now}" for key, before, now in _differences(old, trial) if key.split(".")[0] not in (*FREE, *STARTS)]
            more = f" and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
            return [f"Begins a new run. An earlier one, {run_dir}, is another training "
                    f"({'; '.join(changes[:MOST_CHANGES])}{more}): to go on from its state "
                    f"with this command's options, add --resume={run_dir}."]
    return []


def _as_continued(run_dir: str, old: EasyDict, config: EasyDict, options: Options, make_networks: Networks) -> EasyDict | None:
    """`config` as it would go on from the run's state; None where that has not the networks of `config`, has other data, or
    has seen as many images already.
    """
    try:
        with training_state.understood(run_dir):
            if not training_state.states_of(run_dir) or _what_fits(old) != _what_fits(config):      # the rest takes longer
                return None
            trial = copy.deepcopy(config)
            branch_off(trial, run_dir, options)
            state = check_state(trial.resume_state, make_networks(trial), trial.resume_state)
            return trial if state["status"]["cur_nimg"] < config.total_kimg * 1000 else None
    except UserError:
        return None


def _what_fits(config: EasyDict) -> list[Any]:
    """What two runs have in common where one could go on from the other."""
    path = config.get("training_set_kwargs", {}).get("path", "")
    name = os.path.splitext(os.path.basename(os.path.normpath(path)))[0]
    classes = [config.get(network, {}).get("class_name") for network in ("G_kwargs", "D_kwargs")]
    return [name, *(config.get(key) for key in SHAPES), *classes]


def check_state(path: str, networks: tuple[Any, Any], what: str) -> dict[str, Any]:
    """The state, its tensors left on the disk. UserError, about `what`, where G and D, which may live on the meta
    device, cannot take what it holds.
    """
    state = training_state.load(path, mmap=True)
    G, D = networks
    with training_state.understood(what):
        training_state.check_networks(state, dict(G=G, D=D, G_ema=G), what)
    return state


def take_over(config: EasyDict, earlier: Earlier) -> list[str]:
    """Turns `config` into that of the earlier run, in whose folder it goes on. Returns what to say."""
    old = earlier.config
    notes = [*earlier.notes, f"Continues the run {earlier.run_dir} from {os.path.basename(earlier.state)} (--new starts another one)."
             if earlier.state else f"{earlier.run_dir} ended before its first state and begins again."]
    for key, what in (("num_gpus", "processes"), ("device", "device")):
        if key in old and old[key] != config[key]:
            notes.append(f"Changed: {what} {old[key]} -> {config[key]}.")
    for key, what in zip(FREE_OF_DATA, ("Data", "Number of images")):
        before, now = old.training_set_kwargs.get(key), config.training_set_kwargs[key]
        if before != now:
            notes.append(f"Changed: {what} {before} -> {now}" + ("; the order of the images is another one from here on." if key == "max_size" else "."))
    data = {**old.training_set_kwargs, **{key: config.training_set_kwargs[key] for key in FREE_OF_DATA}}
    config.update({key: value for key, value in old.items() if key not in FREE})
    config.update(training_set_kwargs=data, run_dir=earlier.run_dir)
    return notes


def branch_off(config: EasyDict, path: str, options: Options) -> list[str]:
    """A new run that goes on from any state, given as a file or as a run folder: what may change is said, the rest refused. Changes `config`."""
    if os.path.isdir(path):
        path, notes = _newest_of(path)
    else:
        notes = []
    old = EasyDict(json.loads(training_state.load(path, mmap=True)["config"]))
    for key in SHAPES:
        if old[key] != config[key]:
            data = f"--data={config.training_set_kwargs['path']}"
            raise UserError(f"--resume={path}: its {key} is {old[key]}, that of {data} is {config[key]}; a state "
                            "continues the same networks only: "
                            "use such data, or start from weights with --resume=network-snapshot-*.pkl")
    for network in ("G_kwargs", "D_kwargs"):
        before, now = old[network].get("rays"), config[network].get("rays")
        if before != now and None not in (before, now):
            if options.rays is not None:
                raise UserError(f"--resume={path} --rays={now}: the networks of this state know --rays={before}; leave --rays out, or start from weights")
            config[network]["rays"] = before
    notes += keep_noise(config, path, old.G_kwargs)
    notes += keep_camera_training(config, path, old.D_kwargs, options, old.loss_kwargs.get("camera_weight", 0))
    config.resume_state, config.resume_pkl, config.ema_rampup = path, None, old.ema_rampup
    config.loss_kwargs.update({key: value for key, value in old.loss_kwargs.items() if key.startswith("blur")})      # what a warm start has set
    if config.camera_loss > 0:
        config.loss_kwargs.update(camera_start_kimg=old.loss_kwargs.get("camera_start_kimg", 0))
    if "ada_kimg" in config and "ada_kimg" in old:
        config.ada_kimg = old.ada_kimg
    changes = [f"{key} {before} -> {now}" for key, before, now in _differences(old, config) if key.split(".")[0] not in (*FREE, *STARTS)]
    changed = f" Changed since then: {'; '.join(changes)}." if changes else ""
    return [*notes, f"Goes on in a new run from {path}.{changed}"]


def same_augmentation(config: dict, state: dict) -> bool:
    """Does the state's strength of augmentation still mean the same?"""
    old = json.loads(state["config"])
    adaptive = [run.get("ada_target") is not None for run in (old, config)]
    keys = ("augment_kwargs",) if all(adaptive) else ("augment_kwargs", "augment_p")
    return adaptive[0] == adaptive[1] and all(json.dumps(old.get(key)) == json.dumps(config.get(key)) for key in keys)


@contextlib.contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Within, no other process trains in this folder; UserError where one does. The system ends a lock with its process."""
    path = os.path.join(run_dir, ".lock")
    with open(path, "a+", encoding="utf-8") as stream:
        if fcntl is not None:
            _wait_for_lock(stream, run_dir)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}" if hasattr(os, "uname") else str(os.getpid()))
        stream.flush()
        yield


def remove_parts(run_dir: str) -> None:
    """What a killed process left half-written. For whoever holds the lock."""
    for path in glob.glob(os.path.join(glob.escape(run_dir), "*.part")):
        os.remove(path)


# ---------------------------------------------------------------------------------------------------------------------

def _wait_for_lock(stream: Any, run_dir: str) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                stream.seek(0)
                raise UserError(f"{run_dir} is being trained by {stream.read() or 'another process'}; wait for it, or start another run with --new") from None
            time.sleep(0.1)
        except OSError as error:         # a file system without locks
            print(f"Warning: {run_dir} cannot be locked ({error.strerror}): do not start the same command twice at a time.")
            return


def _runs(outdir: str) -> Iterator[tuple[str, EasyDict]]:
    """Run folders and their options, the newest first."""
    for path in sorted(glob.glob(os.path.join(glob.escape(outdir), "[0-9]*", "training_options.json")), reverse=True):
        yield os.path.dirname(path), _read_options(path)


def _read_options(path: str) -> EasyDict:
    try:
        with open(path, "rb") as stream:
            options = parse_json(stream.read())
        return _easy(options) if isinstance(options, dict) else EasyDict()
    except (OSError, ValueError):
        return EasyDict()


def _easy(value: Any) -> Any:
    return EasyDict({key: _easy(item) for key, item in value.items()}) if isinstance(value, dict) else value


def _newest_of(run_dir: str) -> tuple[str, list[str]]:
    path, notes = training_state.newest(run_dir)
    if path is None:
        raise UserError(f"--resume={run_dir}: no training-state-*.pt in it that can be read; give a run folder of this project, or a network file")
    return path, notes


def _has_last_tick(run_dir: str, cur_nimg: int) -> bool:
    if not os.path.exists(os.path.join(run_dir, "stats.jsonl")):
        return False
    records = read_stats(run_dir)
    return bool(records) and records[-1].get("Progress/kimg", {}).get("mean", 0) * 1000 >= cur_nimg - 0.5


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif json.dumps(old) != json.dumps(new):
        yield key, old, new
