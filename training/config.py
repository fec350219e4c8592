"""Options, a preset and a data set -> one JSON document that alone rebuilds the run. Pure: prints nothing, makes no folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from dnnlib import EasyDict, UserError
from dnnlib.util import is_url, open_whole, usable_cores
from training.presets import AUGMENTATION_SUMS, AUGMENTATIONS, MOVING_AUGMENTATIONS, PRESETS, PUBLISHED, RECIPES, Preset, lookup

# What may change without making it another training: how it is computed, how long, what is written, where the data lie.
FREE = ("num_gpus", "batch_gpu", "device", "data_loader_kwargs", "cudnn_benchmark", "checkpoint_activations", "total_kimg", "kimg_per_tick",
        "image_snapshot_ticks", "network_snapshot_ticks", "keep", "metrics", "metric_kwargs", "run_dir", "fingerprint", "aug", "camera_loss")
FILLED = ("cfg", "gamma", "resume", "batch", "aug", "cond", "snap")     # by a recipe
FREE_OF_DATA = ("path", "max_size")      # of training_set_kwargs: a cluster may copy the data to another place for each job
MAX_NAME = 255                           # bytes of a file's name
MOST_WORKERS = 3                         # per process, where the user does not say


@dataclass
class Options:
    """What the user asked for. None stands for: as the preset, or the data, says."""

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


@dataclass
class DataInfo:
    """What the configuration needs to know about the data."""

    name: str
    num_images: int
    resolution: int
    num_channels: int
    label_dim: int              = 0      # with labels read
    has_camera_labels: bool     = False
    kwargs: dict                = field(default_factory=dict)       # training_set_kwargs that gave all this


@dataclass
class Plan:
    """The configuration and what should be said about how it came about."""

    config: EasyDict
    notes: list[str]


def apply_recipe(options: Options) -> Options:
    """The options with what the recipe knows and the user left open; --gpus is for `choose_gpus`. --resume=none: no network to start from."""
    if options.recipe is not None:
        row = lookup(RECIPES, options.recipe, "--recipe")
        options = replace(options, **{name: getattr(row, name) for name in FILLED if getattr(options, name) is None})
    return replace(options, resume=None) if options.resume == "none" else options


def choose_gpus(options: Options, preset: Preset, available: int) -> int:
    """How many processes: --gpus; else as many as the recipe's authors had, as far as the machine has them and the batch divides among them."""
    if options.gpus is not None or options.recipe is None:
        return options.gpus or 1
    batch = preset.batch if options.batch is None else options.batch
    shares = {gpus: batch // gpus for gpus in range(1, min(RECIPES[options.recipe].gpus, available) + 1) if batch % gpus == 0}
    fitting = [gpus for gpus, share in shares.items() if share % (options.batch_gpu or share) == 0
               and (options.batch_gpu or share) % options.mbstd_group == 0]
    return max(fitting, default=1)


def describe_recipe(asked: Options, options: Options) -> list[str]:
    """What the recipe has filled in, for the notes of a run."""
    if options.recipe is None:
        return []
    filled = [f"--{name}={int(value) if isinstance(value, bool) else value}" for name in (*FILLED, "gpus")
              if getattr(asked, name) is None and (value := getattr(options, name)) is not None]
    authors = RECIPES[options.recipe].gpus
    gpus = f" (the authors had {authors} GPUs)" if options.gpus != authors else ""
    return [f"--recipe={options.recipe} fills {' '.join(filled)}{gpus}." if filled else f"--recipe={options.recipe}: every option of it was given."]


def preset_of(options: Options) -> Preset:
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
    """Are labels read at all? A network with rays always needs them."""
    if preset.rays and options.cond is False:
        raise UserError(f"--cond=0 with --cfg={options.cfg}: this network is steered by camera labels; leave --cond out or use --cfg=stylegan2")
    return preset.rays or bool(options.cond)


def build_config(options: Options, preset: Preset, data: DataInfo) -> Plan:
    """The whole run. Raises UserError for what cannot be."""
    notes: list[str] = []
    if options.gpus is None:
        options = replace(options, gpus=1)
    _check_data(options, preset, data, notes)
    batch, batch_gpu = _check_batch(options, preset)
    gamma = _gamma(options, preset, data.resolution, batch, notes)
    warm_start = starts_from_network(options)

    config = EasyDict(num_gpus=options.gpus, batch_size=batch, batch_gpu=batch_gpu, random_seed=options.seed)
    config.G_kwargs, config.D_kwargs = _network_kwargs(options, preset)
    if preset.magnitude_ema:
        config.G_kwargs.magnitude_ema_beta = 0.5 ** (batch / 20000)
    config.G_opt_kwargs = _adam(preset.glr if options.glr is None else options.glr)
    config.D_opt_kwargs = _adam(preset.dlr if options.dlr is None else options.dlr)
    config.G_reg_interval, config.D_reg_interval = preset.G_reg_interval, preset.D_reg_interval
    config.loss_kwargs = dict(class_name="training.loss.StyleGAN2Loss", r1_gamma=gamma, style_mixing_prob=preset.style_mixing_prob,
                              pl_weight=preset.pl_weight)
    config.camera_loss = camera_loss_of(options, preset)
    if config.camera_loss > 0:
        config.loss_kwargs.update(camera_weight=config.camera_loss, camera_start_kimg=preset.camera_start_kimg)
    config.ema_kimg = batch * 10 / 32
    config.ema_rampup = 0.05
    if preset.blur_init_sigma > 0:
        config.loss_kwargs.update(blur_init_sigma=preset.blur_init_sigma, blur_fade_kimg=batch * 200 / 32)
    config.aug = options.aug or preset.aug
    config.update(_augmentation(options, config.aug, data, warm_start, notes))
    config.resume_pkl, config.ray_init, config.resume_state = options.resume, options.ray_init, None
    if warm_start:
        config.ema_rampup = None
        config.loss_kwargs.update(blur_init_sigma=0, blur_fade_kimg=0)
        if config.camera_loss > 0:
            config.loss_kwargs.update(camera_start_kimg=0)

    config.training_set_kwargs = dict(data.kwargs)
    config.img_resolution, config.img_channels, config.label_dim = data.resolution, data.num_channels, data.label_dim
    workers = default_workers(options.gpus) if options.workers is None else options.workers
    config.data_loader_kwargs = dict(num_workers=workers, pin_memory=False, drop_last=True)
    if workers > 0:
        config.data_loader_kwargs.update(prefetch_factor=2, persistent_workers=True)
        if sys.platform == "linux":      # a spawned worker whose process dies while it starts would live on for ever
            config.data_loader_kwargs["multiprocessing_context"] = "fork"
    config.metrics, config.metric_kwargs = list(preset.metrics if options.metrics is None else options.metrics), {}
    config.total_kimg = preset.default_kimg if options.kimg is None else options.kimg
    config.kimg_per_tick = options.tick
    config.image_snapshot_ticks = config.network_snapshot_ticks = 100 if options.snap is None else options.snap
    config.cudnn_benchmark = not options.nobench
    config.checkpoint_activations = options.checkpoint_activations
    config.allow_tf32 = False
    config.keep = options.keep
    config.run_dir = None
    config.fingerprint = fingerprint(dict(config, desc=options.desc), data.name)
    config.desc = f"{options.cfg}-{data.name}-gpus{options.gpus}-batch{batch}-gamma{gamma:g}" + (f"-{options.desc}" if options.desc else "")
    return Plan(config, notes)


def _check_data(options: Options, preset: Preset, data: DataInfo, notes: list[str]) -> None:
    if data.resolution < 8:
        raise UserError(f"--data={options.data}: images of {data.resolution} px; the networks need 8 px or more: "
                        "resize them first")
    if preset.rays and not data.has_camera_labels:
        got = f"{data.label_dim} numbers per label" if data.label_dim else "no labels"
        raise UserError(f"--data={options.data}: {got}, but --cfg={options.cfg} needs camera labels of 25 numbers "
                        "(cam2world 4x4, intrinsics 3x3, "
                        "both row by row) in dataset.json; see docs/conventions.md, or use --cfg=stylegan2")
    if (preset.aug == "noaug" and options.aug is None) or (not preset.metrics and options.metrics is None):
        notes.append(f"--cfg={options.cfg} is a small preset: without --aug there is no augmentation, without --metrics no metric.")
    if preset.rays and options.cond is None:
        notes.append("Labels of 25 numbers are cameras: --cond=1 is implied.")
    if options.cbase is not None and options.cbase < data.resolution:
        raise UserError(f"--cbase={options.cbase}: layers of {data.resolution} px would have {options.cbase} / "
                        f"{data.resolution} channels; "
                        f"choose {data.resolution} or more")
    dcond = dcond_of(options, preset)
    if dcond != "pose" and not data.has_camera_labels:
        raise UserError(f"--dcond={dcond}: rays in the discriminator need camera labels (--cond=1 and 25 numbers per image)")
    if options.camera_loss and not data.has_camera_labels:
        raise UserError(f"--camera-loss={options.camera_loss:g}: the camera loss needs camera labels (--cond=1 and 25 numbers per image)")
    if options.rays is not None and not preset.rays and dcond == "pose":
        raise UserError(f"--rays={options.rays}: --cfg={options.cfg} has no rays; use --cfg=raycond2 or leave --rays out")


def _check_batch(options: Options, preset: Preset) -> tuple[int, int]:
    """Images per step, and per process and pass."""
    batch = preset.batch if options.batch is None else options.batch
    given = f"--batch={batch}" + (" (the default)" if options.batch is None else "")
    given += f" --gpus={options.gpus}" if options.gpus > 1 else ""
    if batch % options.gpus != 0:
        raise UserError(f"{given}: {batch} images do not divide among {options.gpus} processes; choose a multiple "
                        f"of {options.gpus}")
    per_process = batch // options.gpus
    batch_gpu = per_process if options.batch_gpu is None else options.batch_gpu
    if per_process % batch_gpu != 0:
        raise UserError(f"--batch-gpu={batch_gpu} {given}: {per_process} images per process and step do not divide "
                        f"into passes of {batch_gpu}; "
                        f"choose a divisor of {per_process}")
    if batch_gpu % options.mbstd_group != 0:
        given = given if options.batch_gpu is None else f"--batch-gpu={batch_gpu}"
        raise UserError(f"--mbstd-group={options.mbstd_group} {given}: {batch_gpu} "
                        f"image{'s' if batch_gpu > 1 else ''} per process and pass do not divide into "
                        f"groups of {options.mbstd_group}; "
                        f"{f'choose a divisor of {batch_gpu}' if batch_gpu > 1 else 'use --mbstd-group=1'}, or another "
                        "--batch or --batch-gpu")
    return batch, batch_gpu


def default_workers(processes: int) -> int:
    """Reading processes for each of so many training processes: as in StyleGAN3, but together no more than there are
    cores.
    """
    return min(MOST_WORKERS, usable_cores() // processes)


def _gamma(options: Options, preset: Preset, resolution: int, batch: int, notes: list[str]) -> float:
    if options.gamma is None and preset.gamma is not None:
        return preset.gamma
    if options.gamma in (None, "auto"):
        gamma = 0.0002 * resolution ** 2 / batch
        notes.append(f"--gamma=auto: R1 weight {gamma:g} = 0.0002 * {resolution}^2 / {batch}, a start; look at the curves and try a few.")
        return gamma
    return float(options.gamma)


def _augmentation(options: Options, aug: str, data: DataInfo, warm_start: bool, notes: list[str]) -> dict[str, Any]:
    """The part of the configuration that training.ada builds on."""
    if aug == "noaug":
        if options.augpipe is not None:
            raise UserError(f"--augpipe={options.augpipe}: there is no augmentation; add --aug=ada or --aug=fixed, or leave --augpipe out")
        if options.p is not None:
            notes.append(f"There is no augmentation: --p={options.p:g} has no effect.")
        if options.target is not None:
            notes.append(f"There is no augmentation: --target={options.target:g} has no effect.")
        return dict(augment_kwargs=None, augment_p=0.0)
    transforms = _transforms(options.augpipe or ("color" if data.has_camera_labels else "bgc"), data.has_camera_labels)
    config = dict(augment_kwargs=dict(class_name="training.augment.AugmentPipe", **dict.fromkeys(transforms, 1)))
    if data.has_camera_labels and options.augpipe is None:
        notes.append(f"--aug={aug} changes colours only, since the labels are cameras, which a moved image would not fit; --aug=noaug turns it off.")
    if aug == "fixed":
        if options.target is not None:
            notes.append(f"--aug=fixed does not adapt: --target={options.target:g} has no effect.")
        return dict(config, augment_p=0.2 if options.p is None else options.p)
    target = 0.6 if options.target is None else options.target
    return dict(config, augment_p=options.p or 0.0, ada_target=target, ada_interval=4, ada_kimg=100 if warm_start else 500)


def _transforms(augpipe: str, has_camera_labels: bool) -> list[str]:
    """'bg+noise' -> the transforms' names."""
    known = {**{name: name for name in AUGMENTATIONS}, **AUGMENTATION_SUMS}
    groups = [group for part in augpipe.split("+") for group in lookup(known, part, "--augpipe").split("+")]
    moving = [group for group in MOVING_AUGMENTATIONS if group in groups]
    if moving and has_camera_labels:
        raise UserError(f"--augpipe={augpipe}: {' and '.join(moving)} would move what is in the image but not the camera in its label, so that D learned "
                        "wrong poses; use color, filter, noise, cutout or a sum of them (and --mirror=1 to mirror images and cameras)")
    return [name for group in AUGMENTATIONS if group in groups for name in AUGMENTATIONS[group]]


def _network_kwargs(options: Options, preset: Preset) -> tuple[EasyDict, EasyDict]:
    half = dict(num_fp16_res=0 if options.fp32 else preset.num_fp16_res, conv_clamp=None if options.fp32 else preset.conv_clamp)
    width = dict(channel_base=options.cbase or preset.cbase, channel_max=options.cmax or preset.cmax)
    rays = options.rays or "pinhole"
    if options.fp32 and options.bf16:
        raise UserError("--fp32=1 --bf16=1: two precisions; give one of them")
    G_width = {name: size * preset.G_width for name, size in width.items()}
    G = EasyDict(class_name=preset.generator, z_dim=preset.z_dim, w_dim=preset.w_dim,
                 mapping_kwargs=dict(num_layers=options.map_depth or preset.mapping_layers), **G_width, **half, **dict(preset.synthesis_kwargs))
    D = EasyDict(class_name="training.discriminator.Discriminator", **width, **half, block_kwargs=dict(freeze_layers=options.freezed),
                 mapping_kwargs={}, epilogue_kwargs=dict(mbstd_group_size=options.mbstd_group))
    if preset.rays:
        G.rays = rays
    if (dcond := dcond_of(options, preset)) != "pose":
        D.update(dcond=dcond, rays=rays)
    if camera_loss_of(options, preset) > 0:
        D.predicts_camera = True
    if options.bf16:
        G.half_dtype = "bf16"
        D.block_kwargs["half_dtype"] = "bf16"
    return G, D


def _adam(lr: float) -> dict[str, Any]:
    return dict(class_name="torch.optim.Adam", lr=lr, betas=[0.0, 0.99], eps=1e-8)


def fingerprint(config: dict, data_name: str) -> str:
    """Equal for configurations that train the same network in the same way. Of a configuration before anything is taken over from files."""
    same = {key: value for key, value in config.items() if key not in FREE}
    same["training_set_kwargs"] = {key: value for key, value in config["training_set_kwargs"].items() if key not in FREE_OF_DATA}
    if same["resume_pkl"] is not None and not is_url(same["resume_pkl"], allow_file_urls=True):
        same["resume_pkl"] = os.path.normpath(same["resume_pkl"])
    return hashlib.sha256(json.dumps([same, data_name], sort_keys=True).encode()).hexdigest()


def is_state(path: str | None) -> bool:
    """Does that value of --resume mean a training state, or a run that has some, rather than a network?"""
    return path is not None and (path.endswith(".pt") or os.path.isdir(path))


def keep_noise(config: EasyDict, source: str, old: dict | None) -> list[str]:
    """G keeps layer noise, or does without, as `source`, which was built with the arguments `old` (None: unknown).
    Changes `config`; returns what to say.
    """
    before, now = (kwargs.get("use_noise", True) for kwargs in (old or {}, config.G_kwargs))
    if before == now:
        return []
    config.G_kwargs["use_noise"] = before
    return [f"{source} has {'layer noise' if before else 'no layer noise'}, which is kept."]


def keep_camera_training(config: EasyDict, source: str, old: dict | None, options: Options, weight: float | None = None) -> list[str]:
    """What D sees of the camera stays as in `source`, whose D was built with the arguments `old` (None: it has none),
    unless options say otherwise. weight: of its camera loss; None: unknown, so the preset's counts. Changes `config`;
    returns what to say.
    """
    if old is None:
        return []
    notes = []
    D, loss = config.D_kwargs, config.loss_kwargs
    before, now = (kwargs.get("dcond", "pose") for kwargs in (old, D))
    if options.dcond is None and before != now:
        D.update(dcond=before, rays=options.rays or old.get("rays", "published"))
        notes.append(f"{source} was trained with --dcond={before}, which is kept.")
    if D.get("dcond", "pose") == "pose":
        D.pop("dcond", None)
        D.pop("rays", None)
    if options.camera_loss is None:
        usual = loss.get("camera_weight", 0)
        unsaid = PRESETS[options.cfg].camera_loss if weight is None else weight
        kept = unsaid if old.get("predicts_camera") else 0
        if kept > 0:
            D.update(predicts_camera=True)
            loss.update(camera_weight=kept, camera_start_kimg=loss.get("camera_start_kimg", 0))
        else:
            for kwargs, name in ((D, "predicts_camera"), (loss, "camera_weight"), (loss, "camera_start_kimg")):
                kwargs.pop(name, None)
        config.camera_loss = kept
        if kept != usual:
            notes.append(f"{source} was trained with --camera-loss={kept:g}, which is kept.")
    return notes


def describe_camera_training(config: EasyDict, options: Options, preset: Preset) -> list[str]:
    """What a run that begins does otherwise than the released code, where nobody asked for it."""
    ours = [f"--dcond={config.D_kwargs.get('dcond', 'pose')}"] if options.dcond is None and "dcond" in config.D_kwargs else []
    ours += [f"--camera-loss={config.camera_loss:g}"] if options.camera_loss is None and config.camera_loss > 0 else []
    if not preset.rays or not ours:
        return []
    return [f"Not as published: {' '.join(ours)}. --rays=published trains as the released code did, --dcond=pose "
            "--camera-loss=0 does so with exact rays."]


def keep_ray_convention(config: EasyDict, source: Any, rays_given: bool) -> list[str]:
    """A resumed ray network keeps its convention unless --rays was given. Changes `config`; returns what to say."""
    old, new = getattr(source, "rays", None), config.G_kwargs.get("rays")
    if old is None or new is None or old == new:
        return []
    if rays_given:
        return [f"Warning: {config.resume_pkl} was trained with --rays={old}; it continues with --rays={new} and has to learn its cameras anew."]
    config.G_kwargs["rays"] = old
    if "rays" in config.D_kwargs:
        config.D_kwargs["rays"] = old
    return [f"Rays: {config.resume_pkl} knows the convention '{old}', which is kept."]


def next_run_dir(outdir: str, desc: str) -> str:
    """OUTDIR/NNNNN-DESC with the first number after all that are there. UserError for a name that is too long."""
    names = os.listdir(outdir) if os.path.isdir(outdir) else []
    taken = [int(match.group()) for name in names if (match := re.match(r"\d+", name))]
    name = f"{max(taken, default=-1) + 1:05d}-{desc}"
    if len(os.fsencode(name)) > MAX_NAME:
        raise UserError(f"--desc, --data: the run folder would be called {name}, {len(os.fsencode(name))} bytes, "
                        f"expected {MAX_NAME} at most; give a shorter description, or a data set with a shorter name")
    return os.path.join(outdir, name)


def save_options(config: dict) -> None:
    """Writes training_options.json into the run folder."""
    with open_whole(os.path.join(config["run_dir"], "training_options.json"), text=True) as stream:
        json.dump(config, stream, indent=2)
