"""Trains a GAN that sees camera rays (raycond2, raycond3) or one that does not (stylegan2, stylegan3).

Options -> make_plan() -> launch().
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

import dnnlib
from dnnlib import UserError, cli
from dnnlib.util import naming, run_program, without_control
from training.presets import AUGMENTATION_SUMS, AUGMENTATIONS, PRESETS, PUBLISHED, RECIPES, Preset
from training.run import config as cfg

if TYPE_CHECKING:
    from training.run import takeover

EXIT_SAVED = 75                          # EX_TEMPFAIL: asked to stop, the state is saved, the same command continues
EXIT_CODES = {signal.SIGINT: 130}        # as in shells
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
  python train.py --outdir=training-runs --data=heads.zip --cfg=raycond2-tiny --batch=32 \\
      --resume=training-runs/00000-.../training-state-000040.pt

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


def in_presets(name: str, show: Callable[[Any], str] = str, where: str = "") -> str:
    """For help texts: the default that the presets have for this field, and that of the tiny ones."""
    usual, tiny = ({show(getattr(row, name)) for cfg, row in PRESETS.items() if cfg.endswith("-tiny") == is_tiny}
                   for is_tiny in (False, True))
    return f"[default: {'|'.join(usual)}{where}; the tiny presets: {'|'.join(tiny)}]"


def option(*flags: str, **kwargs: Any) -> Callable:
    """click.option with the default of config.Options, if that has the option."""
    name = flags[-1].removeprefix("--").replace("-", "_")
    return click.option(*flags, **({"default": DEFAULTS[name]} if name in DEFAULTS else {}), **kwargs)


DEFAULTS = {field.name: field.default for field in dataclasses.fields(cfg.Options)
            if field.default not in (dataclasses.MISSING, ())}
FILLED = ", ".join(f"--{name}" for name in (*cfg.FILLED, "gpus"))
SUMS = ", ".join([*AUGMENTATIONS, *AUGMENTATION_SUMS])
WITH_RAYS = PRESETS["raycond2"]


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
# Required.
@option("--outdir",     help="Where the run folders go", metavar="DIR", required=True, type=cli.PATH)
@option("--data",       help="Training data: an EG3D zip or folder", metavar="ZIP|DIR", required=True, type=cli.PATH)
@option("--cfg",        help=f"Preset: {', '.join(PRESETS)}", metavar="NAME")
# What people usually set.
@option("--recipe",     help=f"A run of the authors; fills {FILLED}: {', '.join(RECIPES)}",
              metavar="NAME")
@option("--gpus",       help="Number of GPUs, or of processes on a CPU  [default: 1; a recipe takes those of its authors, as far as there are so many]",
              type=POSITIVE)
@option("--batch",      help=f"Total batch size  {in_presets('batch')}", type=POSITIVE)
@option("--gamma",      help=f"R1 weight; auto: 0.0002 * resolution^2 / batch  {in_presets('gamma', lambda gamma: str(gamma or 'auto'))}", type=GammaType())
@option("--cond",       help="Train with labels  [default: on for networks with rays]", type=bool, metavar="BOOL")
@option("--mirror",     help="Mirror the images, and their cameras, too", type=bool, metavar="BOOL")
@option("--aug",        help=f"Augmentation of what D sees; ada: as strong as D overfits  {in_presets('aug')}",
              type=click.Choice(["noaug", "ada", "fixed"]))
@option("--augpipe",    help=f"What --aug does: {SUMS}, or a sum like color+noise  "
              "[default: color where labels are cameras, else bgc]", metavar="NAME")
@option("--resume",     help="auto: continue the newest run of this configuration in --outdir. A network: what a new run starts from; none: nothing. "
              "A training-state-*.pt or a run folder: where a new run, with other options, goes on  [default: auto]", type=cli.PATH,
              metavar="auto|none|PKL|URL|PT|DIR")
@option("--new",        help="Start another run, even where one could be continued", is_flag=True)
@option("--freezed",    help="Layers of D that do not train", type=click.IntRange(min=0))
# Rays.
@option("--rays",       help="Ray convention  [default: pinhole; a resumed ray network keeps its own]", type=click.Choice(["pinhole", "published"]))
@option("--dcond",      help=f"How D learns the camera: the label, rays in its image, both  [default: {WITH_RAYS.dcond} for new networks with rays; "
              f"others {PUBLISHED['dcond']}, as published; a resumed ray network keeps its own]", type=click.Choice(["pose", "rays", "both"]))
@option("--camera-loss", help="Weight of the camera loss: D learns to tell cameras, G shows the one asked for; 0: off  "
              f"[default: {WITH_RAYS.camera_loss:g} for new networks with rays; others {PUBLISHED['camera_loss']:g}, as published; "
              "a resumed ray network keeps its own]", type=Number(min=0))
@option("--ray-init",   help="New weights of a network resumed without rays, or of smaller images; zero: the first images are its own",
              type=click.Choice(["zero", "random"]))
@option("--camera-check", help="Judge the cameras' geometry before training; off where cameras look outward on purpose",
              type=click.Choice(["strict", "off"]), default="strict")
# Hyperparameters.
@option("--p",          help="Probability for --aug=fixed  [default: 0.2]; where --aug=ada starts  [default: 0]", type=Number(0, 1))
@option("--target",     help="Mean sign of D on real images that --aug=ada holds  [default: 0.6]", type=Number(0, 1))
@option("--batch-gpu",  help="Images per process and pass; fewer need less memory  [default: batch / gpus]", type=POSITIVE)
@option("--cbase",      help="Channels at resolution r are this / r ...", type=POSITIVE)
@option("--cmax",       help="... but at most this", type=POSITIVE)
@option("--glr",        help="Learning rate of G  [default: as the preset]", type=ABOVE_ZERO)
@option("--dlr",        help="Learning rate of D  [default: as the preset]", type=ABOVE_ZERO)
@option("--map-depth",  help="Layers of the mapping network  [default: as the preset]", type=POSITIVE)
@option("--mbstd-group", help="Group size of minibatch standard deviation", type=POSITIVE)
# The rest.
@option("--desc",       help="Added to the name of the run folder", metavar="TEXT", type=cli.NAME)
@option("--metrics",    help="Metrics at each snapshot; or none  "
              + in_presets("metrics", lambda names: ",".join(names) or "none", " where its detector is at hand"),
              metavar="A,B", callback=cli.comma_list)
@cli.samples_option
@cli.detector_option
@cli.pose_regressor_option
@cli.embedding_option
@option("--kimg",       help=f"Thousands of images to train for  {in_presets('default_kimg')}", type=ABOVE_ZERO)
@option("--tick",       help="Thousands of images between status lines", type=ABOVE_ZERO)
@option("--snap",       help="Ticks between snapshots  [default: 100]", type=POSITIVE)
@option("--keep",       help="Remove all but the last N network snapshots and training states  [default: all snapshots, 2 states]",
              metavar="N", type=POSITIVE)
@option("--seed",       help="Random seed", type=click.IntRange(0, 2**32 - 1))
@option("--fp32",       help="Full precision everywhere", type=bool, metavar="BOOL")
@option("--bf16",       help="bfloat16 where float16 is the rule", type=bool, metavar="BOOL")
@option("--nobench",    help="No search for the fastest cuDNN algorithms", type=bool, metavar="BOOL")
@option("--checkpoint-activations", help="Compute features again in the backward pass instead of keeping them: less memory, more time",
              type=bool, metavar="BOOL")
@option("--workers",    help="Processes that read images, per GPU  [default: 3, or as many as there are cores for]", type=click.IntRange(min=0))
@cli.device_option
@option("-n", "--dry-run", help="Print the options and stop", is_flag=True)
def main(camera_check: str, device: str, dry_run: bool, new: bool, **kwargs: Any) -> None:
    """Train a GAN from scratch or from an existing network.

    The same command again continues where the last one ended. SIGTERM, SIGUSR1, SIGHUP (unless ignored, as under
    nohup) and a closed pipe (| head) save the state and leave with exit code 75, Ctrl-C with 130.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # before torch is loaded: waiting threads free their core
    kwargs["resume"] = None if kwargs["resume"] == "auto" else kwargs["resume"]
    plan = make_plan(cfg.Options(**kwargs), device, new, allow_geometry=camera_check == "off", dry_run=dry_run)
    if plan.earlier is not None and plan.earlier.finished:
        print(f"{plan.earlier.run_dir} has trained for its {plan.config.total_kimg:g} kimg. "
              "Train longer with a larger --kimg, or start another run with --new.")
    elif dry_run:
        print(describe_plan(plan))
        print("That is the plan (-n): nothing was started.")
    else:
        launch(plan)


# ---------------------------------------------------------------------------------------------------------------------
# Plan. Everything that can be wrong is found here, before anything is written.

def make_plan(asked: cfg.Options, device: str = "auto", new: bool = False, allow_geometry: bool = False,
              dry_run: bool = False) -> cfg.Plan:
    """The run that these options ask for. Reads the data, and the network or state that it starts from; writes nothing.

    device: 'auto', 'cuda' or 'cpu'. new: do not continue an earlier run. allow_geometry: cameras may look outward.
    dry_run: download nothing. Raises UserError for a run that could not start. Stops short if plan.earlier is finished.
    """
    from torch_utils import distributed
    from training.run import folder, resume, takeover
    options = cfg.apply_recipe(asked)
    preset = cfg.preset_of(options)
    device = distributed.choose_device(device, options.gpus or 1)
    gpus = cfg.choose_gpus(options, preset, distributed.count_devices(device))
    options = dataclasses.replace(options, gpus=gpus)
    with naming("--data", options.data):
        dataset, info = read_dataset(options, preset)
    draft = cfg.build_config(options, preset, info, device)             # as if it started from nothing
    draft = draft if new else resume.continue_earlier(options, preset, draft)
    earlier = draft.earlier
    if earlier is not None and earlier.finished:
        return draft
    notes = [*cfg.describe_recipe(asked, options), *dataset.notes, *draft.notes]
    if info.has_camera_labels:
        notes += dataset.check_cameras(allow_geometry=allow_geometry)
    if earlier is None and asked.resume is None:
        notes += takeover.describe_other(options.outdir, draft.config, options, meta_networks)
    kept = choose_start(draft, options, dry_run)
    config = takeover.with_kept(draft.config, kept)
    notes += [change.note for change in kept if change.note]
    if earlier is None:
        notes += takeover.describe_camera_training(config, options, preset)
    values, said = choose_metrics(config, options, dry_run)
    notes += said
    if device == "cpu":
        notes.append(f"Training on the CPU in {gpus} process{'es' if gpus > 1 else ''}.")
    if earlier is None:
        values.update(run_dir=folder.next_run_dir(options.outdir, draft.desc))
        folder.check_outdir(options.outdir)
    return dataclasses.replace(draft, config=cfg.freeze({**config, **values}), notes=tuple(notes))


def read_dataset(options: cfg.Options, preset: Preset) -> tuple[Any, cfg.DataInfo]:
    """Opens the data to learn what they are."""
    kwargs = dict(class_name="training.dataset.ImageFolderDataset", path=options.data,
                  use_labels=cfg.wants_labels(options, preset), max_size=None, xflip=False, random_seed=options.seed)
    dataset = dnnlib.util.construct_class_by_name(**kwargs)
    kwargs.update(resolution=dataset.check_resolution(), num_channels=dataset.num_channels, xflip=options.mirror,
                  max_size=len(dataset))
    return dataset, cfg.DataInfo(name=dataset.name, num_images=len(dataset), resolution=dataset.resolution,
                                 num_channels=dataset.num_channels, label_dim=dataset.label_dim,
                                 has_camera_labels=dataset.has_camera_labels, kwargs=kwargs)


def choose_start(plan: cfg.Plan, options: cfg.Options, dry_run: bool) -> list[takeover.Kept]:
    """What the run takes over from where it begins. Raises UserError if it cannot begin there."""
    from training.run import resume, takeover
    config, earlier = plan.config, plan.earlier
    if earlier is not None or cfg.is_state(options.resume):
        if earlier is not None:
            kept, state, flag = takeover.take_over(config, earlier), earlier.state, ""
        else:
            with naming("--resume", options.resume):
                kept = takeover.branch_off(config, options.resume, options)
            state, flag = takeover.with_kept(config, kept).resume_state, "--resume="
        if state is not None:
            resume.check_state(state, meta_networks(takeover.with_kept(config, kept)), flag + state)
        return kept
    if config.resume_pkl is None:
        return []
    if dry_run and dnnlib.util.is_url(config.resume_pkl) and not dnnlib.util.is_at_hand(config.resume_pkl):
        return [takeover.Kept(f"--resume={config.resume_pkl} was not checked: -n downloads nothing.")]
    try:
        return check_resume(config, options)
    except UserError as error:
        if options.recipe is None or options.resume != RECIPES[options.recipe].resume:
            raise
        raise UserError(f"--recipe={options.recipe} starts from a network: {error.message}. Or say where it is, "
                        "--resume=FILE, or start from nothing, --resume=none") from error


def check_resume(config: cfg.Config, options: cfg.Options) -> list[takeover.Kept]:
    """What the run takes over from the network config.resume_pkl. Raises UserError if that does not fit."""
    import network_files
    from training.networks.transfer import check_match, compare, describe_sizes, sources_of
    from training.run import takeover
    file = config.resume_pkl
    with naming("--resume", file):
        sources, notes = sources_of(network_files.read(file), file)
    built_with = {name: getattr(sources[name], "init_kwargs", None) for name in "GD"}
    kept = [*map(takeover.Kept, notes),
            *takeover.keep_from_network(config, sources["G_ema"], built_with, options)]
    G, D = meta_networks(takeover.with_kept(config, kept))
    targets = dict(G=G, D=D, G_ema=G)
    reports = [compare(targets[name], source, config.ray_init, name)
               for name, source in sources.items() if source is not None]
    check_match(reports, file)
    resolution = getattr(sources["G"], "img_resolution", config.img_resolution)
    return [*kept, *map(takeover.Kept, describe_sizes(reports, resolution, config.img_resolution, file))]


def choose_metrics(config: cfg.Config, options: cfg.Options, dry_run: bool) -> tuple[dict[str, Any], list[str]]:
    """The configuration's `metrics` and `metric_kwargs`, and notes. Raises UserError if metrics cannot be computed. If
    nobody asked for them, leaves them out instead.
    """
    skipped = []
    if config.metrics:
        import metrics
        kwargs = metrics.detector_options(options.detector, options.pose_regressor, options.embedding)
        try:
            names, notes = prepare_metrics(config, options, kwargs, dry_run)
            return dict(metrics=names, metric_kwargs=kwargs), notes
        except UserError as error:
            if options.metrics is not None or options.detector:
                raise
            skipped = [f"The default metric is skipped. {error.message}."]
    given = [f"--{name.replace('_', '-')}" for name in ("samples", "detector", "pose_regressor", "embedding")
             if getattr(options, name)]
    unused = [f"There are no --metrics: {', '.join(given)} has no effect."] if given else []
    return dict(metrics=[], metric_kwargs={}), skipped + unused


def prepare_metrics(config: cfg.Config, options: cfg.Options, kwargs: dict[str, Any],
                    dry_run: bool) -> tuple[list[str], list[str]]:
    """The metrics' full names, and notes. Fetches their detectors, except for the preset's metrics, which nobody asked
    for. A dry run only names the detectors.
    """
    import metrics
    is_default = options.metrics is None
    absent: list[str] | None = [] if dry_run and not is_default else None
    fetch = dict(fetch=False) if is_default else dict(absent=absent)
    names = metrics.prepare(list(config.metrics), config.training_set_kwargs, meta_networks(config)[0],
                            samples=options.samples, **fetch, **kwargs)
    if is_default:
        return names, [f"--metrics={','.join(names)} is the default; --samples=N takes fewer images, "
                       "--metrics=none computes none."]
    if absent:
        return names, [f"-n downloads nothing: the run fetches the detector{'s' if len(absent) > 1 else ''} "
                       f"{', '.join(absent)} first."]
    return names, []


def meta_networks(config: cfg.Config) -> tuple[Any, Any]:
    """G and D of the run without memory for their weights."""
    import torch

    from training.training_loop import network_kwargs
    with torch.device("meta"):
        return tuple(dnnlib.util.construct_class_by_name(**kwargs) for kwargs in network_kwargs(config))


def describe_plan(plan: cfg.Plan) -> str:
    """What is about to be run, for the screen and the log."""
    config, info = plan.config, plan.data
    labels = "cameras" if info.has_camera_labels else f"{info.label_dim} numbers each" if info.label_dim else "none"
    mirrored = ", and each mirrored" if info.kwargs["xflip"] else ""
    lines = ["", json.dumps(config, indent=2), "",
             f"run      {config.run_dir}",
             f"data     {info.kwargs['path']}: {info.num_images} images{mirrored}, {info.resolution} px, "
             f"{info.num_channels} channels, labels: {labels}",
             f"length   {config.total_kimg:g} kimg in batches of {config.batch_size} on "
             f"{config.num_gpus} x {config.device}"]
    return "\n".join([*lines, *(f"note     {without_control(note)}" for note in plan.notes), ""])


# ---------------------------------------------------------------------------------------------------------------------
# Launch.

def launch(plan: cfg.Plan) -> None:
    """Runs or continues the plan. Ends the program if a signal ended the run."""
    from torch_utils import distributed, signals
    from training.run import folder
    from training.run import state as training_state
    if plan.earlier is None:
        plan = plan.with_values(run_dir=folder.make_run_dir(os.path.dirname(plan.config.run_dir), plan.desc))
    config, run_dir = json.loads(json.dumps(plan.config)), plan.config.run_dir      # a run is what its JSON file says
    with folder.locked(run_dir):
        write_options(config)
        with logged(run_dir):
            print(describe_plan(plan))
        folder.remove_parts(run_dir)
        state, _ = training_state.newest(run_dir, set_aside=True)        # again, now that no other process writes
        try:
            stopped_by = distributed.launch(run_process, config["num_gpus"], config["device"], config, state)
        except signals.Interrupted as error:
            say_end(run_dir, error.args[0], "stopped while nothing was under way. The same command begins "
                                            f"or continues {run_dir}.")
            sys.exit(128 + error.args[0])
        if stopped_by:
            say_end(run_dir, stopped_by, f"the state was saved in {run_dir}. The same command continues.")
            sys.exit(EXIT_CODES.get(stopped_by, EXIT_SAVED))


def write_options(config: dict) -> None:
    """Writes training_options.json. Raises UserError if it, or the log, cannot be written."""
    from training.run import folder
    run_dir = config["run_dir"]
    try:
        folder.save_options(config)
        logged(run_dir).close()
    except OSError as error:
        raise UserError(f"--outdir={os.path.dirname(run_dir)}: cannot write into {run_dir}: "
                        f"{error.strerror or error}; choose a folder that you may write to") from error


def logged(run_dir: str | None) -> dnnlib.util.Logger:
    """Inside, what is printed also goes into the run's log.txt (None: only to the screen). If the reader of the output
    has gone, training ends as by a signal.
    """
    from torch_utils import signals
    path = None if run_dir is None else os.path.join(run_dir, "log.txt")
    return dnnlib.util.Logger(path, file_mode="a", reader_gone=lambda: signals.StopRequest.ask(signals.BROKEN_PIPE))


def say_end(run_dir: str, number: int, what: str) -> None:
    """Says on the screen and in log.txt why the run has ended early."""
    from torch_utils import signals
    gone = number == signals.BROKEN_PIPE
    with logged(run_dir):
        why = "The reader of the output has gone" if gone else signal.Signals(number).name
        print(f"{why}: {what}", file=sys.stderr if gone else sys.stdout)


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
