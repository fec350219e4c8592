"""Which run does a command continue? The newest run of the same configuration, from its newest state that can be read.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dnnlib import EasyDict, UserError
from dnnlib.util import RENAMED, parse_json
from training.presets import PUBLISHED, Preset
from training.run import state as training_state
from training.run.config import Options, Plan, build_config
from training.run.status import read_stats

# Keys that configurations of earlier versions lack, and how such runs go on.
ADDED = dict(camera_loss="before there was a camera loss, and goes on without; --new starts a run with it.",
             aug="when --aug=noaug was the default, and goes on without augmentation; --aug=ada starts another run.")


@dataclass
class Earlier:
    """A run that can be continued."""

    run_dir: str
    config: EasyDict                     # of its training_options.json
    state: str | None                    # None: it ended before its first state, and begins again
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def find_run(outdir: str, config: EasyDict) -> Earlier | None:
    """The newest run below `outdir` with the fingerprint of `config`, or None. Raises UserError if none of its states
    can be read.
    """
    for run_dir, old in runs_below(outdir):
        if old.get("fingerprint") != config.fingerprint:
            continue
        state, notes = training_state.newest(run_dir)
        if state is None and training_state.states_of(run_dir):
            raise UserError(f"{run_dir}: none of its states can be read ({notes[-1]}); start another run with --new")
        seen = 0 if state is None else training_state.load(state, mmap=True)["status"]["cur_nimg"]
        finished = seen >= config.total_kimg * 1000 and _has_last_tick(run_dir, seen)
        return Earlier(run_dir, old, state, finished, notes)
    return None


def continue_earlier(options: Options, preset: Preset, plan: Plan) -> Plan:
    """The plan with the earlier run that it continues, if there is one. A run that began with older defaults goes on
    with these.
    """
    earlier = find_run(options.outdir, plan.config)
    if earlier is not None:
        return replace(plan, earlier=earlier)
    for asked, added in older_defaults(options, preset):
        old = build_config(asked, preset, plan.data, plan.config.device)
        earlier = find_run(options.outdir, old.config)
        if earlier is not None and all(earlier.config.get(key) is None for key in added):      # such runs do not say
            old = old.with_values([f"{earlier.run_dir} began {ADDED[key]}" for key in added], **dict.fromkeys(added))
            return replace(old, earlier=earlier)
    return plan


def older_defaults(options: Options, preset: Preset) -> list[tuple[Options, tuple[str, ...]]]:
    """The options as earlier versions understood them, and the keys that configurations of those versions lack."""
    versions = [(options, ())]
    if preset.camera_loss > 0 and options.camera_loss is None:
        published = replace(options, camera_loss=0.0, dcond=options.dcond or PUBLISHED["dcond"])
        versions.append((published, ("camera_loss",)))
    if options.aug is None and options.augpipe is None and preset.aug != "noaug":
        versions += [(replace(asked, aug="noaug"), (*added, "aug")) for asked, added in versions]
    return versions[1:]


def check_state(path: str, networks: tuple[Any, Any], what: str) -> dict[str, Any]:
    """Loads a state, its tensors left on the disk. Raises UserError, about `what`, if it does not fit the networks G
    and D, which may live on the meta device.
    """
    state = training_state.load(path, mmap=True)
    G, D = networks
    with training_state.understood(what):
        training_state.check_networks(state, dict(G=G, D=D, G_ema=G), what)
    return state


def same_augmentation(config: dict, state: dict) -> bool:
    """Whether the strength of augmentation in the state still means the same."""
    old = json.loads(state["config"])
    adaptive = [run.get("ada_target") is not None for run in (old, config)]
    keys = ("augment_kwargs",) if all(adaptive) else ("augment_kwargs", "augment_p")
    return adaptive[0] == adaptive[1] and all(json.dumps(old.get(key)) == json.dumps(config.get(key)) for key in keys)


def runs_below(outdir: str) -> Iterator[tuple[str, EasyDict]]:
    """Run folders and their options, the newest first."""
    pattern = os.path.join(glob.escape(outdir), "[0-9]*", "training_options.json")
    for path in sorted(glob.glob(pattern), reverse=True):
        yield os.path.dirname(path), _read_options(path)


def _read_options(path: str) -> EasyDict:
    try:
        with open(path, "rb") as stream:
            options = parse_json(stream.read())
        return with_todays_names(options) if isinstance(options, dict) else EasyDict()
    except (OSError, ValueError):
        return EasyDict()


def with_todays_names(value: Any) -> Any:
    """A stored configuration as EasyDicts, with the names that classes have today."""
    if isinstance(value, dict):
        return EasyDict({key: with_todays_names(item) for key, item in value.items()})
    return RENAMED.get(value, value) if isinstance(value, str) else value


def newest_of(run_dir: str) -> tuple[str, list[str]]:
    """The newest state of a run folder that can be read, and notes about others. Raises UserError if there is none."""
    path, notes = training_state.newest(run_dir)
    if path is None:
        raise UserError(f"--resume={run_dir}: no training-state-*.pt in it that can be read; give a run folder of this "
                        "project, or a network file")
    return path, notes


def _has_last_tick(run_dir: str, cur_nimg: int) -> bool:
    if not os.path.exists(os.path.join(run_dir, "stats.jsonl")):
        return False
    records = read_stats(run_dir)
    return bool(records) and records[-1].get("Progress/kimg", {}).get("mean", 0) * 1000 >= cur_nimg - 0.5
