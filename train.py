"""Trains a GAN that sees camera rays (raycond2, raycond3) or one that does not (stylegan2, stylegan3)."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import sys
from typing import Any

import click

import dnnlib
from dnnlib import UserError, cli
from dnnlib.util import naming, run_program, without_control
from training import config as cfg
from training.presets import AUGMENTATION_SUMS, AUGMENTATIONS, PRESETS, PUBLISHED, RECIPES

EXIT_SAVED = 75                          # EX_TEMPFAIL of sysexits.h: asked to stop, state saved, run the same command again
EXIT_CODES = {signal.SIGINT: 130}        # as shells have it
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

EXAMPLES = """\b
Examples:
  \b
  # Heads at 32 px on a CPU, fresh (see dataset_preprocessing/procedural).
  python train.py --outdir=training-runs --data=heads.zip --cfg=raycond2-tiny

  \b
  # FFHQ at 512 px from a StyleGAN2 network, 2 GPUs.
  python train.py --outdir=training-runs --data=eg3d-ffhq.zip --cfg=raycond2 --gpus=2 --batch=32 --gamma=1 --snap=20 \\
      --cond=1 --aug=noaug --resume=checkpoints/stylegan2-ffhq-512x512.pkl

  \b
  # The same, as the authors' recipe.
  python train.py --outdir=training-runs --data=eg3d-ffhq.zip --recipe=raycond2-ffhq

  \b
  # Go on from a state with another batch size, in a new run.
  python train.py --outdir=training-runs --data=heads.zip --cfg=raycond2-tiny --batch=32 --resume=training-runs/00000-.../training-state-000040.pt

  \b
  # Only show what would be run.
  python train.py --outdir=training-runs --data=heads.zip --cfg=raycond2-tiny -n
"""


class GammaType(click.ParamType):
    """A number >= 0, or 'auto'."""

    name = "FLOAT|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if value == "auto":
            return value
        try:
            number = float(value)                       # type: ignore[arg-type]
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            self.fail(f"{value!r} is neither a number from 0 on nor 'auto'", param, ctx)
        return number


class Number(click.FloatRange):
    """A FloatRange of finite numbers."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


POSITIVE = click.IntRange(min=1)
ABOVE_ZERO = Number(min=0, min_open=True)


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
# Required.
@click.option("--outdir",       help="Where the run folders go", metavar="DIR", required=True, type=cli.PATH)
@click.option("--data",         help="Training data: an EG3D zip or folder", metavar="ZIP|DIR", required=True, type=cli.PATH)
@click.option("--cfg",          help=f"Preset: {', '.join(PRESETS)}", metavar="NAME")
# What people usually set.
@click.option("--recipe",       help=f"A run of the authors; fills {', '.join(f'--{name}' for name in (*cfg.FILLED, 'gpus'))}: {', '.join(RECIPES)}",
              metavar="NAME")
@click.option("--gpus",         help="Number of GPUs, or of processes on a CPU  [default: 1; a recipe takes those of its authors, as far as there are so many]",
              type=POSITIVE)
@click.option("--batch",        help="Total batch size  [default: 32; the tiny presets: 16]", type=POSITIVE)
@click.option("--gamma",        help="R1 weight; auto: 0.0002 * resolution^2 / batch  [default: auto; the tiny presets: 0.05]", type=GammaType())
@click.option("--cond",         help="Train with labels  [default: on for networks with rays]", type=bool, metavar="BOOL")
@click.option("--mirror",       help="Mirror the images, and their cameras, too", type=bool, default=False, metavar="BOOL")
@click.option("--aug",          help="Augmentation of what D sees; ada: as strong as D overfits  [default: ada; the tiny presets: noaug]",
              type=click.Choice(["noaug", "ada", "fixed"]))
@click.option("--augpipe",      help=f"What --aug does: {', '.join([*AUGMENTATIONS, *AUGMENTATION_SUMS])}, or a sum like color+noise  "
              "[default: color where labels are cameras, else bgc]", metavar="NAME")
@click.option("--resume",       help="auto: continue the newest run of this configuration in --outdir. A network: what a new run starts from; none: nothing. "
              "A training-state-*.pt or a run folder: where a new run, with other options, goes on  [default: auto]", type=cli.PATH,
              metavar="auto|none|PKL|URL|PT|DIR")
@click.option("--new",          help="Start another run, even where one could be continued", is_flag=True)
@click.option("--freezed",      help="Layers of D that do not train", type=click.IntRange(min=0), default=0)
# Rays.
@click.option("--rays",         help="Ray convention  [default: pinhole; a resumed ray network keeps its own]", type=click.Choice(["pinhole", "published"]))
@click.option("--dcond",        help="How D learns the camera: the label, rays in its image, both  [default: both for new networks with rays; "
              "others pose, as published; a resumed ray network keeps its own]", type=click.Choice(["pose", "rays", "both"]))
@click.option("--camera-loss",  help="Weight of the camera loss: D learns to tell cameras, G shows the one asked for; 0: off  [default: 2 for new "
              "networks with rays; others 0, as published; a resumed ray network keeps its own]", type=Number(min=0))
@click.option("--ray-init",     help="New weights of a network resumed without rays, or of smaller images; zero: the first images are its own",
              type=click.Choice(["zero", "random"]), default="zero")
@click.option("--camera-check", help="Judge the cameras' geometry before training; off where cameras look outward on purpose",
              type=click.Choice(["strict", "off"]), default="strict")
# Hyperparameters.
@click.option("--p",            help="Probability for --aug=fixed  [default: 0.2]; where --aug=ada starts  [default: 0]", type=Number(0, 1))
@click.option("--target",       help="Mean sign of D on real images that --aug=ada holds  [default: 0.6]", type=Number(0, 1))
@click.option("--batch-gpu",    help="Images per process and pass; fewer need less memory  [default: batch / gpus]", type=POSITIVE)
@click.option("--cbase",        help="Channels at resolution r are this / r ...", type=POSITIVE)
@click.option("--cmax",         help="... but at most this", type=POSITIVE)
@click.option("--glr",          help="Learning rate of G  [default: as the preset]", type=ABOVE_ZERO)
@click.option("--dlr",          help="Learning rate of D  [default: as the preset]", type=ABOVE_ZERO)
@click.option("--map-depth",    help="Layers of the mapping network  [default: as the preset]", type=POSITIVE)
@click.option("--mbstd-group",  help="Group size of minibatch standard deviation", type=POSITIVE, default=4)
# The rest.
@click.option("--desc",         help="Added to the name of the run folder", metavar="TEXT", type=cli.NAME)
@click.option("--metrics",      help="Metrics at each snapshot; or none  [default: fid50k_full where its detector is at hand; the tiny presets: none]",
              metavar="A,B", callback=cli.comma_list)
@cli.samples_option
@cli.detector_option
@cli.pose_regressor_option
@cli.embedding_option
@click.option("--kimg",         help="Thousands of images to train for  [default: 25000; the tiny presets: 100]", type=ABOVE_ZERO)
@click.option("--tick",         help="Thousands of images between status lines", type=ABOVE_ZERO, default=4)
@click.option("--snap",         help="Ticks between snapshots  [default: 100]", type=POSITIVE)
@click.option("--keep",         help="Remove all but the last N network snapshots and training states  [default: all snapshots, 2 states]",
              metavar="N", type=POSITIVE)
@click.option("--seed",         help="Random seed", type=click.IntRange(0, 2**32 - 1), default=0)
@click.option("--fp32",         help="Full precision everywhere", type=bool, default=False, metavar="BOOL")
@click.option("--bf16",         help="bfloat16 where float16 is the rule", type=bool, default=False, metavar="BOOL")
@click.option("--nobench",      help="No search for the fastest cuDNN algorithms", type=bool, default=False, metavar="BOOL")
@click.option("--checkpoint-activations", help="Compute features again in the backward pass instead of keeping them: less memory, more time",
              type=bool, default=False, metavar="BOOL")
@click.option("--workers",      help="Processes that read images, per GPU  [default: 3, or as many as there are cores for]", type=click.IntRange(min=0))
@cli.device_option
@click.option("-n", "--dry-run", help="Print the options and stop", is_flag=True)
def main(camera_check: str, device: str, dry_run: bool, new: bool, **kwargs: object) -> None:
    """Train a GAN from scratch or from an existing network.

    The same command again continues where the last one ended. SIGTERM, SIGUSR1, SIGHUP (unless ignored, as under
    nohup) and a closed pipe (| head) save the state and leave with exit code 75, Ctrl-C with 130.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # before torch: its threads would spin while others need the core
    kwargs["resume"] = None if kwargs["resume"] == "auto" else kwargs["resume"]
    asked = cfg.Options(**kwargs)
    options = cfg.apply_recipe(asked)
    preset = cfg.preset_of(options)
    from torch_utils import distributed
    from training import continuing
    device = distributed.choose_device(device, options.gpus or 1)
    options.gpus = cfg.choose_gpus(options, preset, distributed.count_devices(device))

    with naming("--data", options.data):
        dataset, info = read_dataset(options, preset)
    plan = cfg.build_config(options, preset, info)
    earlier = None
    if not new:
        plan, earlier = find_earlier(options, preset, info, plan)
    config, notes = plan.config, cfg.describe_recipe(asked, options) + list(dataset.notes) + plan.notes
    if info.has_camera_labels:
        notes += dataset.check_cameras(allow_geometry=camera_check == "off")
    config.device = device
    config.data_loader_kwargs["pin_memory"] = device == "cuda"
    desc = config.pop("desc")
    if earlier is not None and earlier.finished:
        print(f"{earlier.run_dir} has trained for its {config.total_kimg:g} kimg. Train longer with a larger --kimg, or start another run with --new.")
        return
    if earlier is None and asked.resume is None:
        notes += continuing.describe_other(options.outdir, config, options, meta_networks)
    notes += prepare_start(config, options, earlier, dry_run)
    if earlier is None:
        notes += cfg.describe_camera_training(config, options, preset)
    notes += check_metrics(config, options, dry_run)
    if device == "cpu":
        notes.append(f"Training on the CPU in {options.gpus} process{'es' if options.gpus > 1 else ''}.")
    config.run_dir = cfg.next_run_dir(options.outdir, desc) if earlier is None else earlier.run_dir
    if earlier is None:
        check_outdir(options.outdir)
    if dry_run:
        print(describe_plan(config, info, notes))
        print("That is the plan (-n): nothing was started.")
        return
    if earlier is None:
        config.run_dir = make_run_dir(options.outdir, desc)
    train(config, describe_plan(config, info, notes))


def train(config: dnnlib.EasyDict, plan_text: str) -> None:
    """Runs or continues what is in config.run_dir. Leaves the program where a signal ended it."""
    from torch_utils import distributed, signals
    from training import continuing, training_state
    with continuing.locked(config.run_dir):
        write_options(config)
        with logged(config.run_dir):
            print(plan_text)
        continuing.remove_parts(config.run_dir)
        state, _ = training_state.newest(config.run_dir, set_aside=True)       # again, now that nobody else is writing
        try:
            stopped_by = distributed.launch(run_process, config.num_gpus, config.device, dict(config), state)
        except signals.Interrupted as error:
            say_end(config.run_dir, error.args[0], "stopped while nothing was under way. The same command begins "
                                                   f"or continues {config.run_dir}.")
            sys.exit(128 + error.args[0])
        if stopped_by:
            say_end(config.run_dir, stopped_by, f"the state was saved in {config.run_dir}. The same command continues.")
            sys.exit(EXIT_CODES.get(stopped_by, EXIT_SAVED))


def find_earlier(options: cfg.Options, preset: Any, info: cfg.DataInfo, plan: cfg.Plan) -> tuple[cfg.Plan, Any]:
    """The earlier run that the plan continues, or None; and the plan, which is another one for runs that began with
    older defaults.
    """
    from training import continuing
    earlier = continuing.find_run(options.outdir, plan.config)
    if earlier is not None:
        return plan, earlier
    for asked, added in older_defaults(options, preset):
        old = cfg.build_config(asked, preset, info)
        earlier = continuing.find_run(options.outdir, old.config)
        if earlier is not None and all(earlier.config.get(key) is None for key in added):      # such runs do not say
            old.config.update(dict.fromkeys(added))
            old.notes += [f"{earlier.run_dir} began {ADDED[key]}" for key in added]
            return old, earlier
    return plan, None


# Keys of a configuration that earlier versions did not have, and how their runs go on.
ADDED = dict(camera_loss="before there was a camera loss, and goes on without; --new starts a run with it.",
             aug="when --aug=noaug was the default, and goes on without augmentation; --aug=ada starts another run.")


def older_defaults(options: cfg.Options, preset: Any) -> list[tuple[cfg.Options, tuple[str, ...]]]:
    """The options as earlier versions understood them, with the keys that their configurations lack."""
    versions = [(options, ())]
    if preset.camera_loss > 0 and options.camera_loss is None:
        published = dataclasses.replace(options, camera_loss=0.0, dcond=options.dcond or PUBLISHED["dcond"])
        versions.append((published, ("camera_loss",)))
    if options.aug is None and options.augpipe is None and preset.aug != "noaug":
        versions += [(dataclasses.replace(asked, aug="noaug"), (*added, "aug")) for asked, added in versions]
    return versions[1:]


def logged(run_dir: str | None) -> dnnlib.util.Logger:
    """Within, what is printed goes into the run's log.txt, too (None: does not), and where its reader has gone the
    training ends as it does by a signal.
    """
    from torch_utils import signals
    path = None if run_dir is None else os.path.join(run_dir, "log.txt")
    return dnnlib.util.Logger(path, file_mode="a", reader_gone=lambda: signals.StopRequest.ask(signals.BROKEN_PIPE))


def say_end(run_dir: str, number: int, what: str) -> None:
    """Why the run has ended before its time, on the screen and in log.txt."""
    from torch_utils import signals
    gone = number == signals.BROKEN_PIPE
    with logged(run_dir):
        why = "The reader of the output has gone" if gone else signal.Signals(number).name
        print(f"{why}: {what}", file=sys.stderr if gone else sys.stdout)


def prepare_start(config: dnnlib.EasyDict, options: cfg.Options, earlier: Any, dry_run: bool) -> list[str]:
    """Before anything is written: where does the run begin, and does that fit? Changes `config`; returns what to say."""
    from training import continuing
    if earlier is not None or cfg.is_state(options.resume):
        if earlier is None:
            with naming("--resume", options.resume):
                notes = continuing.branch_off(config, options.resume, options)
        else:
            notes = continuing.take_over(config, earlier)
        state, flag = (config.resume_state, "--resume=") if earlier is None else (earlier.state, "")
        if state is not None:
            continuing.check_state(state, meta_networks(config), flag + state)
        return notes
    if dry_run and dnnlib.util.is_url(config.resume_pkl) and not dnnlib.util.is_at_hand(config.resume_pkl):
        return [f"--resume={config.resume_pkl} was not checked: -n downloads nothing."]
    if config.resume_pkl is None:
        return []
    try:
        return check_resume(config, options)
    except UserError as error:
        if options.recipe is None or options.resume != RECIPES[options.recipe].resume:
            raise
        raise UserError(f"--recipe={options.recipe} starts from a network: {error.message}. Or say where it is, --resume=FILE, or start from nothing, "
                        "--resume=none") from error


def check_outdir(outdir: str) -> None:
    """UserError where no run folder could be made there. Makes nothing."""
    place = os.path.abspath(outdir)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"--outdir={outdir}: {place} is not a folder; choose another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--outdir={outdir}: you may not write into {place}; choose another folder")


def make_run_dir(outdir: str, desc: str) -> str:
    """A new run folder, also where several commands make theirs at the same moment."""
    while True:
        run_dir = cfg.next_run_dir(outdir, desc)
        try:
            os.makedirs(run_dir)
            return run_dir
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"--outdir={outdir}: cannot make {run_dir}: {error.strerror or error}; choose a folder "
                            "that you may write to") from error


def write_options(config: dnnlib.EasyDict) -> None:
    """The options in the run folder, into which a log can be written, too."""
    try:
        cfg.save_options(config)
        logged(config.run_dir).close()
    except OSError as error:
        raise UserError(f"--outdir={os.path.dirname(config.run_dir)}: cannot write into {config.run_dir}: "
                        f"{error.strerror or error}; choose a folder that "
                        "you may write to") from error


def check_metrics(config: dnnlib.EasyDict, options: cfg.Options, dry_run: bool) -> list[str]:
    """Before anything is written: can the metrics be computed? Fetches their detectors (a dry run names them); puts
    their full names into the configuration. Returns what to say.
    """
    skipped = []
    if options.metrics is None and config.metrics:
        skipped = check_default_metrics(config, options)
        if config.metrics:
            return skipped
    if not config.metrics:
        given = [flag for flag, value in [("--samples", options.samples), ("--detector", options.detector), ("--pose-regressor", options.pose_regressor),
                                          ("--embedding", options.embedding)] if value]
        return skipped + ([f"There are no --metrics: {', '.join(given)} has no effect."] if given else [])
    import metrics
    config.metric_kwargs = metrics.detector_options(options.detector, options.pose_regressor, options.embedding)
    G, _ = meta_networks(config)
    absent: list[str] | None = [] if dry_run else None
    config.metrics = metrics.prepare(config.metrics, config.training_set_kwargs, G, samples=options.samples, absent=absent,
                                     **config.metric_kwargs)
    return [f"-n downloads nothing: the run fetches the detector{'s' if len(absent) > 1 else ''} "
            f"{', '.join(absent)} first."] if absent else []


def check_default_metrics(config: dnnlib.EasyDict, options: cfg.Options) -> list[str]:
    """Keeps the preset's metrics where they can be computed, and else takes them out of the configuration: what nobody asked for fetches nothing and
    ends no run. Returns what to say.
    """
    import metrics
    kwargs = metrics.detector_options(options.detector, options.pose_regressor, options.embedding)
    try:
        names = metrics.prepare(config.metrics, config.training_set_kwargs, meta_networks(config)[0], samples=options.samples, fetch=False, **kwargs)
    except UserError as error:
        if options.detector:             # then it was asked for
            raise
        config.metrics = []
        return [f"The default metric is skipped. {error.message}."]
    config.metrics, config.metric_kwargs = names, kwargs
    return [f"--metrics={','.join(names)} is the default; --samples=N takes fewer images, --metrics=none computes none."]


def meta_networks(config: dnnlib.EasyDict) -> tuple[Any, Any]:
    """G and D of the run without memory for their weights."""
    import torch

    from training.training_loop import network_kwargs
    with torch.device("meta"):
        return tuple(dnnlib.util.construct_class_by_name(**kwargs) for kwargs in network_kwargs(config))


def check_resume(config: dnnlib.EasyDict, options: cfg.Options) -> list[str]:
    """Before anything is written: does the network fit? Keeps its ray convention; returns what to say."""
    import network_files
    from training.transfer import check_match, compare, describe_sizes, sources_of
    with naming("--resume", config.resume_pkl):
        sources, notes = sources_of(network_files.read(config.resume_pkl), config.resume_pkl)
    notes += cfg.keep_ray_convention(config, sources["G_ema"], options.rays is not None)
    built_with = {name: getattr(sources[name], "init_kwargs", None) for name in "GD"}
    notes += cfg.keep_noise(config, config.resume_pkl, built_with["G"])
    if getattr(sources["G_ema"], "rays", None) is not None:
        notes += cfg.keep_camera_training(config, config.resume_pkl, built_with["D"], options)
    G, D = meta_networks(config)
    targets = dict(G=G, D=D, G_ema=G)
    reports = [compare(targets[name], source, config.ray_init, name)
               for name, source in sources.items() if source is not None]
    check_match(reports, config.resume_pkl)
    return notes + describe_sizes(reports, getattr(sources["G"], "img_resolution", config.img_resolution), config.img_resolution, config.resume_pkl)


def read_dataset(options: cfg.Options, preset: object) -> tuple[object, cfg.DataInfo]:
    """Opens the data once to learn what they are."""
    kwargs = dict(class_name="training.dataset.ImageFolderDataset", path=options.data, use_labels=cfg.wants_labels(options, preset), max_size=None,
                  xflip=False, random_seed=options.seed)
    dataset = dnnlib.util.construct_class_by_name(**kwargs)
    kwargs.update(resolution=dataset.check_resolution(), num_channels=dataset.num_channels, xflip=options.mirror, max_size=len(dataset))
    return dataset, cfg.DataInfo(name=dataset.name, num_images=len(dataset), resolution=dataset.resolution, num_channels=dataset.num_channels,
                                 label_dim=dataset.label_dim, has_camera_labels=dataset.has_camera_labels, kwargs=kwargs)


def describe_plan(config: dnnlib.EasyDict, info: cfg.DataInfo, notes: list[str]) -> str:
    """What is about to be run, for the screen and the log."""
    labels = "cameras" if info.has_camera_labels else f"{info.label_dim} numbers each" if info.label_dim else "none"
    mirrored = ", and each mirrored" if info.kwargs["xflip"] else ""
    lines = ["", json.dumps(config, indent=2), "",
             f"run      {config.run_dir}",
             f"data     {info.kwargs['path']}: {info.num_images} images{mirrored}, {info.resolution} px, {info.num_channels} channels, labels: {labels}",
             f"length   {config.total_kimg:g} kimg in batches of {config.batch_size} on {config.num_gpus} x {config.device}"]
    return "\n".join([*lines, *(f"note     {without_control(note)}" for note in notes), ""])


def run_process(rank: int, device: Any, config: dict, state: str | None) -> int:
    """One process of the run. Returns the signal that ended it early, or 0."""
    import functools

    import metrics
    from training.training_loop import training_loop
    evaluate = functools.partial(metrics.evaluate, device=device, **config["metric_kwargs"])
    with logged(config["run_dir"] if rank == 0 else None):
        try:
            return training_loop(config, rank=rank, device=device, evaluate=evaluate, state=state)
        except OSError as error:
            if error.errno not in DISK_IS_FULL:
                raise
            raise UserError(f"{config['run_dir']}: {error.strerror}; the last state that was saved is whole: "
                            "make room, and the same command continues") from error


if __name__ == "__main__":
    run_program(main)
