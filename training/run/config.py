"""Builds a run's configuration from options, a preset and a data set: one JSON document that alone rebuilds the run.

Nothing here prints or makes folders. A configuration does not change once it is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from dnnlib import EasyDict, UserError
from dnnlib.util import RENAMED, is_url, usable_cores
from training.presets import (
    AUGMENTATION_SUMS,
    AUGMENTATIONS,
    MOVING_AUGMENTATIONS,
    PRESETS,
    PUBLISHED,
    RECIPES,
    Preset,
    lookup,
)

# Two configurations that differ in these alone are the same training: how it is computed, how long it runs, what is
# written, and where the data are.
FREE = ("num_gpus", "batch_gpu", "device", "data_loader_kwargs", "cudnn_benchmark", "checkpoint_activations",
        "total_kimg", "kimg_per_tick", "image_snapshot_ticks", "network_snapshot_ticks", "keep", "metrics",
        "metric_kwargs", "run_dir", "fingerprint", "aug", "camera_loss")
FREE_OF_DATA = ("path", "max_size")      # likewise, of training_set_kwargs: a cluster may copy the data for each job
FILLED = ("cfg", "gamma", "resume", "batch", "aug", "cond", "snap")     # by a recipe
MOST_WORKERS = 3                         # default per process


@dataclass(frozen=True)
class Options:
    """What the user asked for; train.py takes its defaults from here. None: the preset or the data decides."""

    outdir: str
    data: str
    cfg: str | None             = None
    recipe: str | None          = None
    gpus: int | None            = None
    batch: int | None           = None
    gamma: float | str | None   = None
    cond: bool | None           = None
    mirror: bool                = False
    aug: str | None             = None
    augpipe: str | None         = None
    resume: str | None          = None
    ray_init: str               = "zero"
    freezed: int                = 0
    rays: str | None            = None
    dcond: str | None           = None
    camera_loss: float | None   = None
    p: float | None             = None
    target: float | None        = None
    batch_gpu: int | None       = None
    cbase: int | None           = None
    cmax: int | None            = None
    glr: float | None           = None
    dlr: float | None           = None
    map_depth: int | None       = None
    mbstd_group: int            = 4
    desc: str | None            = None
    metrics: tuple[str, ...] | None = None
    samples: int | None         = None
    detector: tuple[str, ...]   = ()
    pose_regressor: str | None  = None
    embedding: str | None       = None
    kimg: float | None          = None
    tick: float                 = 4
    snap: int | None            = None
    keep: int | None            = None
    seed: int                   = 0
    fp32: bool                  = False
    bf16: bool                  = False
    nobench: bool               = False
    checkpoint_activations: bool = False
    workers: int | None         = None


@dataclass(frozen=True)
class DataInfo:
    """What the configuration needs to know about the data."""

    name: str
    num_images: int
    resolution: int
    num_channels: int
    label_dim: int              = 0      # of the labels that the run reads
    has_camera_labels: bool     = False
    kwargs: dict                = field(default_factory=dict)       # training_set_kwargs


class Config(EasyDict):
    """A configuration. Raises TypeError if someone tries to change it."""

    def _refuse(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("a run's configuration does not change; build another one")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple:
        return freeze, (dict(self),)


def freeze(value: Any) -> Any:
    """Dicts become Config and lists become tuples, at all depths."""
    if isinstance(value, dict):
        return Config({key: freeze(item) for key, item in value.items()})
    return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Plan:
    """A run before it starts."""

    config: Config
    notes: tuple[str, ...]               # what to tell the user
    desc: str                            # the run folder's name after its number
    data: DataInfo
    earlier: Any                = None   # the run that it continues, from resume.find_run()

    def with_values(self, notes: Iterable[str] = (), **values: Any) -> Plan:
        """A plan with further notes and some other values in its configuration."""
        return replace(self, config=freeze({**self.config, **values}), notes=(*self.notes, *notes))


def apply_recipe(options: Options) -> Options:
    """Fills in what the recipe knows and the user left open, except --gpus (see `choose_gpus`). Resolves --resume=none.
    """
    if options.recipe is not None:
        row = lookup(RECIPES, options.recipe, "--recipe")
        filled = {name: getattr(row, name) for name in FILLED if getattr(options, name) is None}
        options = replace(options, **filled)
    return replace(options, resume=None) if options.resume == "none" else options


def choose_gpus(options: Options, preset: Preset, available: int) -> int:
    """Number of processes: --gpus, or as many as the recipe's authors had, if the machine has them and the batch
    divides among them.
    """
    if options.gpus is not None or options.recipe is None:
        return options.gpus or 1
    batch = preset.batch if options.batch is None else options.batch
    most = min(RECIPES[options.recipe].gpus, available)
    shares = {gpus: batch // gpus for gpus in range(1, most + 1) if batch % gpus == 0}
    fitting = [gpus for gpus, share in shares.items() if share % (options.batch_gpu or share) == 0
               and (options.batch_gpu or share) % options.mbstd_group == 0]
    return max(fitting, default=1)


def describe_recipe(asked: Options, options: Options) -> list[str]:
    """A note that says what the recipe has filled in."""
    if options.recipe is None:
        return []
    filled = [f"--{name}={int(value) if isinstance(value, bool) else value}" for name in (*FILLED, "gpus")
              if getattr(asked, name) is None and (value := getattr(options, name)) is not None]
    authors = RECIPES[options.recipe].gpus
    gpus = f" (the authors had {authors} GPUs)" if options.gpus != authors else ""
    if not filled:
        return [f"--recipe={options.recipe}: every option of it was given."]
    return [f"--recipe={options.recipe} fills {' '.join(filled)}{gpus}."]


def preset_of(options: Options) -> Preset:
    """The preset that --cfg names. Runs as published, and runs from a network, train the camera as published."""
    if options.cfg is None:
        raise UserError(f"--cfg is missing; choose one of {', '.join(PRESETS)} (or a --recipe)")
    preset = lookup(PRESETS, options.cfg, "--cfg")
    published = options.recipe is not None or options.rays == "published" or starts_from_network(options)
    return replace(preset, **PUBLISHED) if published else preset


def starts_from_network(options: Options) -> bool:
    return options.resume is not None and not is_state(options.resume)


def dcond_of(options: Options, preset: Preset) -> str:
    return preset.dcond if options.dcond is None else options.dcond


def camera_loss_of(options: Options, preset: Preset) -> float:
    return preset.camera_loss if options.camera_loss is None else options.camera_loss


def wants_labels(options: Options, preset: Preset) -> bool:
    """Does the run read labels? A network with rays always needs them."""
    if preset.rays and options.cond is False:
        raise UserError(f"--cond=0 with --cfg={options.cfg}: this network is steered by camera labels; "
                        "leave --cond out or use --cfg=stylegan2")
    return preset.rays or bool(options.cond)


def build_config(options: Options, preset: Preset, data: DataInfo, device: str | None = None) -> Plan:
    """The plan of a new run. Raises UserError for options that do not go together.

    device: 'cuda' or 'cpu'; None leaves it to the training loop.
    """
    notes: list[str] = []
    if options.gpus is None:
        options = replace(options, gpus=1)
    _check_data(options, preset, data, notes)
    batch, batch_gpu = _check_batch(options, preset)
    gamma = _gamma(options, preset, data.resolution, batch, notes)
    warm_start = starts_from_network(options)
    camera_loss = camera_loss_of(options, preset)
    aug = options.aug or preset.aug
    G_kwargs, D_kwargs = _network_kwargs(options, preset, batch)
    snap = 100 if options.snap is None else options.snap
    config = dict(
        num_gpus=options.gpus, batch_size=batch, batch_gpu=batch_gpu, random_seed=options.seed,
        G_kwargs=G_kwargs, D_kwargs=D_kwargs,
        G_opt_kwargs=_adam(preset.glr if options.glr is None else options.glr),
        D_opt_kwargs=_adam(preset.dlr if options.dlr is None else options.dlr),
        G_reg_interval=preset.G_reg_interval, D_reg_interval=preset.D_reg_interval,
        loss_kwargs=_loss_kwargs(preset, gamma, batch, camera_loss, warm_start),
        camera_loss=camera_loss,
        ema_kimg=batch * 10 / 32, ema_rampup=None if warm_start else 0.05,
        aug=aug, **_augmentation(options, aug, data, warm_start, notes),
        resume_pkl=options.resume, ray_init=options.ray_init, resume_state=None,
        training_set_kwargs=data.kwargs,
        img_resolution=data.resolution, img_channels=data.num_channels, label_dim=data.label_dim,
        data_loader_kwargs=_data_loader_kwargs(options, pin_memory=device == "cuda"),
        metrics=preset.metrics if options.metrics is None else options.metrics, metric_kwargs={},
        total_kimg=preset.default_kimg if options.kimg is None else options.kimg,
        kimg_per_tick=options.tick, image_snapshot_ticks=snap, network_snapshot_ticks=snap,
        cudnn_benchmark=not options.nobench, checkpoint_activations=options.checkpoint_activations, allow_tf32=False,
        keep=options.keep,
        run_dir=None)
    config["fingerprint"] = fingerprint(dict(config, desc=options.desc), data.name)
    if device is not None:
        config["device"] = device
    desc = f"{options.cfg}-{data.name}-gpus{options.gpus}-batch{batch}-gamma{gamma:g}"
    return Plan(freeze(config), tuple(notes), desc + (f"-{options.desc}" if options.desc else ""), data)


def _loss_kwargs(preset: Preset, gamma: float, batch: int, camera_loss: float, warm_start: bool) -> dict[str, Any]:
    loss = dict(class_name="training.loss.StyleGAN2Loss", r1_gamma=gamma, style_mixing_prob=preset.style_mixing_prob,
                pl_weight=preset.pl_weight)
    if camera_loss > 0:
        loss.update(camera_weight=camera_loss)
        if preset.camera_start_kimg > 0 and not warm_start:            # without it the loss begins at once
            loss.update(camera_start_kimg=preset.camera_start_kimg)
    if warm_start:
        loss.update(blur_init_sigma=0, blur_fade_kimg=0)
    elif preset.blur_init_sigma > 0:
        loss.update(blur_init_sigma=preset.blur_init_sigma, blur_fade_kimg=batch * 200 / 32)
    return loss


def _data_loader_kwargs(options: Options, pin_memory: bool) -> dict[str, Any]:
    workers = default_workers(options.gpus) if options.workers is None else options.workers
    kwargs = dict(num_workers=workers, pin_memory=pin_memory, drop_last=True)
    if workers > 0:
        kwargs.update(prefetch_factor=2, persistent_workers=True)
        if sys.platform == "linux":      # a spawned worker whose process dies while it starts would never end
            kwargs["multiprocessing_context"] = "fork"
    return kwargs


def _check_data(options: Options, preset: Preset, data: DataInfo, notes: list[str]) -> None:
    """Raises UserError if the options ask for something that the data cannot give. Adds to the notes."""
    if data.resolution < 8:
        raise UserError(f"--data={options.data}: images of {data.resolution} px; the networks need 8 px or more: "
                        "resize them first")
    if preset.rays and not data.has_camera_labels:
        got = f"{data.label_dim} numbers per label" if data.label_dim else "no labels"
        raise UserError(f"--data={options.data}: {got}, but --cfg={options.cfg} needs camera labels of 25 numbers "
                        "(cam2world 4x4, intrinsics 3x3, both row by row) in dataset.json; "
                        "see docs/conventions.md, or use --cfg=stylegan2")
    if (preset.aug == "noaug" and options.aug is None) or (not preset.metrics and options.metrics is None):
        notes.append(f"--cfg={options.cfg} is a small preset: without --aug there is no augmentation, "
                     "without --metrics no metric.")
    if preset.rays and options.cond is None:
        notes.append("Labels of 25 numbers are cameras: --cond=1 is implied.")
    if options.cbase is not None and options.cbase < data.resolution:
        raise UserError(f"--cbase={options.cbase}: layers of {data.resolution} px would have {options.cbase} / "
                        f"{data.resolution} channels; choose {data.resolution} or more")
    dcond = dcond_of(options, preset)
    if dcond != "pose" and not data.has_camera_labels:
        raise UserError(f"--dcond={dcond}: rays in the discriminator need camera labels "
                        "(--cond=1 and 25 numbers per image)")
    if options.camera_loss and not data.has_camera_labels:
        raise UserError(f"--camera-loss={options.camera_loss:g}: the camera loss needs camera labels "
                        "(--cond=1 and 25 numbers per image)")
    if options.rays is not None and not preset.rays and dcond == "pose":
        raise UserError(f"--rays={options.rays}: --cfg={options.cfg} has no rays; "
                        "use --cfg=raycond2 or leave --rays out")


def _check_batch(options: Options, preset: Preset) -> tuple[int, int]:
    """Images per step, and per process and pass."""
    batch = preset.batch if options.batch is None else options.batch
    given = f"--batch={batch}" + (" (the default)" if options.batch is None else "")
    given += f" --gpus={options.gpus}" if options.gpus > 1 else ""
    if batch % options.gpus != 0:
        raise UserError(f"{given}: {batch} images do not divide among {options.gpus} processes; "
                        f"choose a multiple of {options.gpus}")
    per_process = batch // options.gpus
    batch_gpu = per_process if options.batch_gpu is None else options.batch_gpu
    if per_process % batch_gpu != 0:
        raise UserError(f"--batch-gpu={batch_gpu} {given}: {per_process} images per process and step do not divide "
                        f"into passes of {batch_gpu}; choose a divisor of {per_process}")
    if batch_gpu % options.mbstd_group != 0:
        given = given if options.batch_gpu is None else f"--batch-gpu={batch_gpu}"
        remedy = f"choose a divisor of {batch_gpu}" if batch_gpu > 1 else "use --mbstd-group=1"
        raise UserError(f"--mbstd-group={options.mbstd_group} {given}: {batch_gpu} image{'s' if batch_gpu > 1 else ''} "
                        f"per process and pass do not divide into groups of {options.mbstd_group}; {remedy}, "
                        "or another --batch or --batch-gpu")
    return batch, batch_gpu


def default_workers(processes: int) -> int:
    """Workers that read images, per training process: as in StyleGAN3, but in total no more than there are cores."""
    return min(MOST_WORKERS, usable_cores() // processes)


def _gamma(options: Options, preset: Preset, resolution: int, batch: int, notes: list[str]) -> float:
    if options.gamma is None and preset.gamma is not None:
        return preset.gamma
    if options.gamma in (None, "auto"):
        gamma = 0.0002 * resolution ** 2 / batch
        notes.append(f"--gamma=auto: R1 weight {gamma:g} = 0.0002 * {resolution}^2 / {batch}, a start; "
                     "look at the curves and try a few.")
        return gamma
    return float(options.gamma)


def _augmentation(options: Options, aug: str, data: DataInfo, warm_start: bool, notes: list[str]) -> dict[str, Any]:
    """The part of the configuration that `ada.make_augmentation` reads."""
    if aug == "noaug":
        if options.augpipe is not None:
            raise UserError(f"--augpipe={options.augpipe}: there is no augmentation; "
                            "add --aug=ada or --aug=fixed, or leave --augpipe out")
        if options.p is not None:
            notes.append(f"There is no augmentation: --p={options.p:g} has no effect.")
        if options.target is not None:
            notes.append(f"There is no augmentation: --target={options.target:g} has no effect.")
        return dict(augment_kwargs=None, augment_p=0.0)
    transforms = _transforms(options.augpipe or ("color" if data.has_camera_labels else "bgc"), data.has_camera_labels)
    config = dict(augment_kwargs=dict(class_name="training.augment.AugmentPipe", **dict.fromkeys(transforms, 1)))
    if data.has_camera_labels and options.augpipe is None:
        notes.append(f"--aug={aug} changes colours only, since the labels are cameras, which a moved image would not "
                     "fit; --aug=noaug turns it off.")
    if aug == "fixed":
        if options.target is not None:
            notes.append(f"--aug=fixed does not adapt: --target={options.target:g} has no effect.")
        return dict(config, augment_p=0.2 if options.p is None else options.p)
    target = 0.6 if options.target is None else options.target
    return dict(config, augment_p=options.p or 0.0, ada_target=target, ada_interval=4,
                ada_kimg=100 if warm_start else 500)


def _transforms(augpipe: str, has_camera_labels: bool) -> list[str]:
    """'bg+noise' -> the transforms' names."""
    known = {**{name: name for name in AUGMENTATIONS}, **AUGMENTATION_SUMS}
    groups = [group for part in augpipe.split("+") for group in lookup(known, part, "--augpipe").split("+")]
    moving = [group for group in MOVING_AUGMENTATIONS if group in groups]
    if moving and has_camera_labels:
        raise UserError(f"--augpipe={augpipe}: {' and '.join(moving)} would move what is in the image but not the "
                        "camera in its label, so that D learned wrong poses; use color, filter, noise, cutout or a sum "
                        "of them (and --mirror=1 to mirror images and cameras)")
    return [name for group in AUGMENTATIONS if group in groups for name in AUGMENTATIONS[group]]


def _network_kwargs(options: Options, preset: Preset, batch: int) -> tuple[dict, dict]:
    """Class and constructor arguments of G and D, without what the data decide."""
    if options.fp32 and options.bf16:
        raise UserError("--fp32=1 --bf16=1: two precisions; give one of them")
    half = dict(num_fp16_res=0 if options.fp32 else preset.num_fp16_res,
                conv_clamp=None if options.fp32 else preset.conv_clamp)
    width = dict(channel_base=options.cbase or preset.cbase, channel_max=options.cmax or preset.cmax)
    rays = options.rays or "pinhole"
    G_width = {name: size * preset.G_width for name, size in width.items()}
    G = dict(class_name=preset.generator, z_dim=preset.z_dim, w_dim=preset.w_dim,
             mapping_kwargs=dict(num_layers=options.map_depth or preset.mapping_layers), **G_width, **half,
             **dict(preset.synthesis_kwargs))
    D = dict(class_name="training.networks.discriminator.Discriminator", **width, **half,
             block_kwargs=dict(freeze_layers=options.freezed), mapping_kwargs={},
             epilogue_kwargs=dict(mbstd_group_size=options.mbstd_group))
    if preset.rays:
        G.update(rays=rays)
    if (dcond := dcond_of(options, preset)) != "pose":
        D.update(dcond=dcond, rays=rays)
    if camera_loss_of(options, preset) > 0:
        D.update(predicts_camera=True)
    if options.bf16:
        G.update(half_dtype="bf16")
        D["block_kwargs"].update(half_dtype="bf16")
    if preset.magnitude_ema:
        G.update(magnitude_ema_beta=0.5 ** (batch / 20000))
    return G, D


def _adam(lr: float) -> dict[str, Any]:
    return dict(class_name="torch.optim.Adam", lr=lr, betas=[0.0, 0.99], eps=1e-8)


def fingerprint(config: dict, data_name: str) -> str:
    """Equal for configurations that train the same network in the same way. Computed before a run takes anything over
    from files.
    """
    same = {key: value for key, value in config.items() if key not in FREE}
    data_kwargs = config["training_set_kwargs"].items()
    same["training_set_kwargs"] = {key: value for key, value in data_kwargs if key not in FREE_OF_DATA}
    first_names = {today: first for first, today in RENAMED.items()}         # runs before the move are found as well
    for network in ("G_kwargs", "D_kwargs"):
        class_name = same[network]["class_name"]
        same[network] = dict(same[network], class_name=first_names.get(class_name, class_name))
    if same["resume_pkl"] is not None and not is_url(same["resume_pkl"], allow_file_urls=True):
        same["resume_pkl"] = os.path.normpath(same["resume_pkl"])
    return hashlib.sha256(json.dumps([same, data_name], sort_keys=True).encode()).hexdigest()


def is_state(path: str | None) -> bool:
    """Does this value of --resume name a training state, or a folder of them, and not a network?"""
    return path is not None and (path.endswith(".pt") or os.path.isdir(path))
