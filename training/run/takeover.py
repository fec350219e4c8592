"""What a run takes over from where it starts: a network, the state of another run, or an earlier run that it continues.

Each function looks at a configuration and returns what changes, as a list of `Kept`; `with_kept` makes the next
configuration of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from dnnlib import EasyDict, UserError
from training.presets import PRESETS, Preset
from training.run import state as training_state
from training.run.config import FREE, FREE_OF_DATA, Config, Options, freeze
from training.run.resume import Earlier, check_state, newest_of, runs_below, with_todays_names

SHAPES = ("img_resolution", "img_channels", "label_dim")
STARTS = ("resume_state", "resume_pkl")                  # where a run began


@dataclass(frozen=True)
class Kept:
    """Values that replace those of a configuration, and a note that says so ("": nothing to say)."""

    note: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def with_kept(config: Config, kept: list[Kept]) -> Config:
    """The configuration with these values, the later ones on top."""
    return freeze({**config, **{key: value for change in kept for key, value in change.values.items()}})


# ---------------------------------------------------------------------------------------------------------------------
# From a network.

def keep_from_network(config: Config, source: torch.nn.Module, built_with: dict[str, dict | None],
                      options: Options) -> list[Kept]:
    """source: the G_ema of config.resume_pkl. built_with: init arguments of "G" and "D"; None: unknown, or absent."""
    file = config.resume_pkl
    kept = _keep_ray_convention(config, source, options.rays is not None)
    kept += _keep_noise(config, file, built_with["G"])
    if getattr(source, "rays", None) is not None:
        kept += _keep_camera_training(with_kept(config, kept), file, built_with["D"], options)
    return kept


def _keep_ray_convention(config: Config, source: torch.nn.Module, rays_given: bool) -> list[Kept]:
    """A resumed ray network keeps its ray convention unless --rays is given."""
    old, new = getattr(source, "rays", None), config.G_kwargs.get("rays")
    if old is None or new is None or old == new:
        return []
    if rays_given:
        return [Kept(f"Warning: {config.resume_pkl} was trained with --rays={old}; it continues with --rays={new} and "
                     "has to learn its cameras anew.")]
    values = {network: dict(config[network], rays=old) for network in ("G_kwargs", "D_kwargs")
              if "rays" in config[network]}
    return [Kept(f"Rays: {config.resume_pkl} knows the convention '{old}', which is kept.", values)]


def _keep_noise(config: Config, source: str, old: dict | None) -> list[Kept]:
    """G has layer noise if it had so in `source`, where it was built with the arguments `old` (None: unknown)."""
    before, now = (kwargs.get("use_noise", True) for kwargs in (old or {}, config.G_kwargs))
    if before == now or "magnitude_ema_beta" in config.G_kwargs:       # StyleGAN3's layers have none to keep
        return []
    note = f"{source} has {'layer noise' if before else 'no layer noise'}, which is kept."
    return [Kept(note, dict(G_kwargs=dict(config.G_kwargs, use_noise=before)))]


def _keep_camera_training(config: Config, source: str, old: dict | None, options: Options,
                          weight: float | None = None) -> list[Kept]:
    """D learns the camera as in `source`, unless options say otherwise.

    old: the arguments that D was built with there; None: it has no D. weight: of its camera loss; None: unknown, the
    preset's counts.
    """
    if old is None:
        return []
    notes, D, loss, camera_loss = [], dict(config.D_kwargs), dict(config.loss_kwargs), config.camera_loss
    before = old.get("dcond", "pose")
    if options.dcond is None and before != D.get("dcond", "pose"):
        D.update(dcond=before, rays=options.rays or old.get("rays", "published"))
        notes.append(f"{source} was trained with --dcond={before}, which is kept.")
    if D.get("dcond", "pose") == "pose":
        D.pop("dcond", None)
        D.pop("rays", None)
    if options.camera_loss is None:
        unsaid = PRESETS[options.cfg].camera_loss if weight is None else weight
        camera_loss = unsaid if old.get("predicts_camera") else 0
        if camera_loss != loss.get("camera_weight", 0):
            notes.append(f"{source} was trained with --camera-loss={camera_loss:g}, which is kept.")
        if camera_loss > 0:
            D.update(predicts_camera=True)
            loss.update(camera_weight=camera_loss)
        else:
            D.pop("predicts_camera", None)
            loss = {key: value for key, value in loss.items() if key not in ("camera_weight", "camera_start_kimg")}
    return [Kept(values=dict(D_kwargs=D, loss_kwargs=loss, camera_loss=camera_loss)), *map(Kept, notes)]


def describe_camera_training(config: Config, options: Options, preset: Preset) -> list[str]:
    """A note of what a new run does otherwise than the released code without being asked to."""
    ours = []
    if options.dcond is None and "dcond" in config.D_kwargs:
        ours.append(f"--dcond={config.D_kwargs['dcond']}")
    if options.camera_loss is None and config.camera_loss > 0:
        ours.append(f"--camera-loss={config.camera_loss:g}")
    if not preset.rays or not ours:
        return []
    return [f"Not as published: {' '.join(ours)}. --rays=published trains as the released code did, --dcond=pose "
            "--camera-loss=0 does so with exact rays."]


# ---------------------------------------------------------------------------------------------------------------------
# From a state.

def branch_off(config: Config, path: str, options: Options) -> list[Kept]:
    """A new run that goes on from a state, given as a file or as a run folder. Raises UserError for options that the
    state cannot follow.
    """
    path, notes = newest_of(path) if os.path.isdir(path) else (path, [])
    old = with_todays_names(json.loads(training_state.load(path, mmap=True)["config"]))
    for key in SHAPES:
        if old[key] != config[key]:
            data = f"--data={config.training_set_kwargs['path']}"
            raise UserError(f"--resume={path}: its {key} is {old[key]}, that of {data} is {config[key]}; a state "
                            "continues the same networks only: use such data, or start from weights with "
                            "--resume=network-snapshot-*.pkl")
    kept = [*map(Kept, notes), *_keep_rays_of_state(config, old, path, options)]
    kept += _keep_noise(with_kept(config, kept), path, old.G_kwargs)
    kept += _keep_camera_training(with_kept(config, kept), path, old.D_kwargs, options,
                                  old.loss_kwargs.get("camera_weight", 0))
    now = with_kept(config, kept)
    loss = {key: value for key, value in now.loss_kwargs.items() if key != "camera_start_kimg"}
    loss.update({key: value for key, value in old.loss_kwargs.items()
                 if key.startswith("blur") or (key == "camera_start_kimg" and now.camera_loss > 0)})
    values = dict(resume_state=path, resume_pkl=None, ema_rampup=old.ema_rampup, loss_kwargs=loss)
    if "ada_kimg" in config and "ada_kimg" in old:
        values.update(ada_kimg=old.ada_kimg)
    kept.append(Kept(values=values))
    changes = describe_changes(old, with_kept(config, kept))
    changed = f" Changed since then: {'; '.join(changes)}." if changes else ""
    return [*kept, Kept(f"Goes on in a new run from {path}.{changed}")]


def _keep_rays_of_state(config: Config, old: EasyDict, path: str, options: Options) -> list[Kept]:
    kept = []
    for network in ("G_kwargs", "D_kwargs"):
        before, now = old[network].get("rays"), config[network].get("rays")
        if before != now and None not in (before, now):
            if options.rays is not None:
                raise UserError(f"--resume={path} --rays={now}: the networks of this state know --rays={before}; "
                                "leave --rays out, or start from weights")
            kept.append(Kept(values={network: dict(config[network], rays=before)}))
    return kept


def describe_changes(old: EasyDict, new: Config) -> list[str]:
    """'key before -> now' for all that makes `new` another training than `old`, apart from where it starts."""
    return [f"{key} {before} -> {now}" for key, before, now in _differences(old, new)
            if key.split(".")[0] not in (*FREE, *STARTS)]


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif json.dumps(old) != json.dumps(new):
        yield key, *(list(value) if isinstance(value, tuple) else value for value in (old, new))


# ---------------------------------------------------------------------------------------------------------------------
# From an earlier run.

def take_over(config: Config, earlier: Earlier) -> list[Kept]:
    """All but FREE values of the earlier run, in whose folder the run goes on."""
    old = earlier.config
    notes = [*earlier.notes, f"Continues the run {earlier.run_dir} from {os.path.basename(earlier.state)} "
             "(--new starts another one)." if earlier.state else
             f"{earlier.run_dir} ended before its first state and begins again."]
    for key, what in (("num_gpus", "processes"), ("device", "device")):
        if key in old and old[key] != config[key]:
            notes.append(f"Changed: {what} {old[key]} -> {config[key]}.")
    for key, what in zip(FREE_OF_DATA, ("Data", "Number of images")):
        before, now = old.training_set_kwargs.get(key), config.training_set_kwargs[key]
        if before != now:
            order = "; the order of the images is another one from here on." if key == "max_size" else "."
            notes.append(f"Changed: {what} {before} -> {now}{order}")
    values = {key: value for key, value in old.items() if key not in FREE}
    data = {**old.training_set_kwargs, **{key: config.training_set_kwargs[key] for key in FREE_OF_DATA}}
    return [*map(Kept, notes), Kept(values=dict(values, training_set_kwargs=data, run_dir=earlier.run_dir))]


# ---------------------------------------------------------------------------------------------------------------------
# What a new run could have gone on from.

Networks = Callable[[Config], tuple[Any, Any]]          # configuration -> G and D without memory for their weights
MOST_CHANGES = 5                         # that a note names


def describe_other(outdir: str, config: Config, options: Options, make_networks: Networks) -> list[str]:
    """A note for a new run where an earlier one below `outdir` could go on with this configuration: people change an
    option and expect it to.
    """
    for run_dir, old in runs_below(outdir):
        trial = _as_continued(run_dir, old, config, options, make_networks)
        if trial is not None:
            changes = describe_changes(old, trial)
            more = f" and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
            what = "; ".join(changes[:MOST_CHANGES]) or "it began with other defaults"
            return [f"Begins a new run. An earlier one, {run_dir}, is another training ({what}{more}): "
                    f"to go on from its state with this command's options, add --resume={run_dir}."]
    return []


def _as_continued(run_dir: str, old: EasyDict, config: Config, options: Options,
                  make_networks: Networks) -> Config | None:
    """`config` as it would go on from the run's state. None if that has other networks or other data, or has seen as
    many images already.
    """
    try:
        with training_state.understood(run_dir):
            if not training_state.states_of(run_dir) or _what_fits(old) != _what_fits(config):      # the rest is slower
                return None
            trial = with_kept(config, branch_off(config, run_dir, options))
            state = check_state(trial.resume_state, make_networks(trial), trial.resume_state)
            return trial if state["status"]["cur_nimg"] < config.total_kimg * 1000 else None
    except UserError:
        return None


def _what_fits(config: EasyDict) -> list[Any]:
    """What two runs have in common if one can go on from the other."""
    path = config.get("training_set_kwargs", {}).get("path", "")
    name = os.path.splitext(os.path.basename(os.path.normpath(path)))[0]
    classes = [config.get(network, {}).get("class_name") for network in ("G_kwargs", "D_kwargs")]
    return [name, *(config.get(key) for key in SHAPES), *classes]
