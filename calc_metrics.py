"""Metrics of a network, of all snapshots of a run, or of a folder of images."""

from __future__ import annotations

import glob
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import click

from dnnlib import UserError, cli
from dnnlib.util import naming, run_program, without_control

EXAMPLES = """Examples:

\b
  # Fetch the detectors (once; needs the network), then FID of a snapshot against the data that it was trained on.
  python calc_metrics.py prepare --metrics=fid50k_full
  python calc_metrics.py --metrics=fid50k_full --network=training-runs/00000-raycond2/network-snapshot-025000.pkl

\b
  # All snapshots of a run, from 10000 images each (fid10k_full, kid10k_full), drawn over the length of training.
  python calc_metrics.py --metrics=fid50k_full,kid50k_full --samples=10000 --network=training-runs/00000-raycond2 --plot

\b
  # How well does it obey its camera? First train the networks that judge it.
  python calc_metrics.py prepare --metrics=pose_error --data=heads.zip
  python calc_metrics.py --metrics=pose_error,view_consistency --data=heads.zip \\
      --network=checkpoints/raycond2-heads-32x32.pkl

\b
  # A folder of 1000 images against a data set, with detectors from files.
  python calc_metrics.py --metrics=fid1k_full,pr1k3_full --images=out --data=heads.zip \\
      --detector=inception=inception-2015-12-05.pt --detector=vgg16=vgg16.pt
"""


@dataclass
class Plan:
    """What to compute; travels to the other processes."""

    names: list[str]                                    # full names of metrics
    snapshots: list[str]                                # network files; empty: judge images
    run_dir: str | None
    data: str | None
    mirror: bool | None
    gpus: int
    device: str
    verbose: bool
    options: dict[str, Any] = field(default_factory=dict)       # further fields of MetricOptions


# ---------------------------------------------------------------------------------------------------------------------
# What to judge.

def find_snapshots(network: str) -> tuple[list[str], str | None]:
    """The network files that --network names, and their run folder or None."""
    import dnnlib
    if os.path.isdir(network):
        found = sorted(glob.glob(os.path.join(glob.escape(network), "network-snapshot-*.pkl")))
        if not found:
            raise UserError(f"--network={network}: the folder holds no network-snapshot-*.pkl; give a run folder or a "
                            "network file")
        return found, network
    if dnnlib.util.is_url(network, allow_file_urls=True):
        return [dnnlib.util.open_url(network, return_filename=True)], None
    if not os.path.isfile(network):
        from legacy import where_from
        raise UserError(f"--network={network}: there is no such file or folder; expected a network file, a run folder "
                        f"or an address{where_from(network)}")
    folder = os.path.dirname(os.path.abspath(network))
    return [network], folder if os.path.isfile(os.path.join(folder, "training_options.json")) else None


def data_kwargs(plan: Plan, G: Any, stored: dict | None) -> dict:
    """Arguments of the data set: --data, else what the network was trained on, `stored` in its file."""
    stored = dict(stored or {})
    kwargs = dict(stored) if plan.data is None else dict(folder_kwargs(plan.data), xflip=stored.get("xflip", False))
    if kwargs:
        kwargs["use_labels"] = G is not None and G.c_dim > 0
        kwargs["xflip"] = kwargs.get("xflip", False) if plan.mirror is None else plan.mirror
    return kwargs


def folder_kwargs(path: str) -> dict:
    return dict(class_name="training.dataset.ImageFolderDataset", path=path)


def load(snapshot: str, verbose: bool) -> tuple[Any, dict | None]:
    """(G_ema, training_set_kwargs) of a network file."""
    import legacy
    if verbose:
        print(f"Loading {snapshot} ...")
    with naming("--network", snapshot, file_first=True):
        networks = legacy.load_network_pkl(snapshot)
        return legacy.generator_of(networks, snapshot), networks["training_set_kwargs"]


# ---------------------------------------------------------------------------------------------------------------------
# Work.

def check(plan: Plan, names: tuple[str, ...], samples: int | None) -> list[str]:
    """Full names of the metrics. Raises UserError if one cannot be computed for the first snapshot."""
    from metrics import metric_main
    from metrics.metric_utils import MetricOptions
    G, stored = load(plan.snapshots[0], verbose=False) if plan.snapshots else (None, None)
    kwargs = data_kwargs(plan, G, stored)
    opts = MetricOptions(G=G, dataset_kwargs=kwargs, device="cpu", **plan.options)
    try:
        requests = metric_main.check_metrics(names, opts, samples, fetch=True)
    except UserError as error:
        if plan.data is not None or os.path.exists(kwargs.get("path", os.curdir)):
            raise
        raise UserError(f"{error.message} (this is the path of the data that the network was trained on; if they lie "
                        "elsewhere, give --data=ZIP)") from error
    if plan.verbose:
        for note in dict.fromkeys(note for opened in opts.opened.values() for note in getattr(opened, "notes", ())):
            print(without_control(note))
    return [request.name for request in requests]


def run_process(rank: int, device: Any, plan: Plan) -> None:
    """Computes the metrics in one process. Rank 0 prints the table."""
    from metrics import compute
    rows = []                                           # (what was judged, results)
    for snapshot in plan.snapshots or [None]:
        G, stored = (None, None) if snapshot is None else load(snapshot, plan.verbose and rank == 0)
        results = compute(plan.names, G, plan.run_dir, snapshot, dataset_kwargs=data_kwargs(plan, G, stored), rank=rank,
                          num_gpus=plan.gpus, device=device, progress=plan.verbose, **plan.options)
        what = plan.options["images_kwargs"]["path"] if snapshot is None else os.path.basename(snapshot)
        rows.append((what, {key: value for result in results for key, value in result.results.items()}))
    if rank == 0:
        print(table(rows))
        if plan.run_dir is None:
            reason = ("the network does not lie in a run folder (one with training_options.json)" if plan.snapshots
                      else "these are images, not a network of a run")
            print(f"\nNot kept in a file: {reason}.")


def table(rows: list[tuple[str, dict]]) -> str:
    """A line per number, sorted by name; below them each text once."""
    keys = list(dict.fromkeys(key for _, results in rows for key in results))
    values = [(key, results[key], what) for key in keys for what, results in rows if key in results]
    numbers = [(key, f"{value:.5g}", what) for key, value, what in values if not isinstance(value, str)]
    widths = [max(len(line[i]) for line in numbers) for i in range(2)]
    lines = ["", *(f"{key:<{widths[0]}}  {value:>{widths[1]}}  {what}" for key, value, what in numbers)]
    notes: dict[tuple[str, str], list[str]] = {}
    for key, value, what in values:
        if isinstance(value, str):
            notes.setdefault((key, value), []).append(what)
    below = [f"{key}: {text}" + (f" ({', '.join(judged)})" if len(judged) < len(rows) else "")
             for (key, text), judged in notes.items()]
    return "\n".join([*lines, "", *below] if below else lines)


# ---------------------------------------------------------------------------------------------------------------------

@click.group(cls=cli.Group, invoke_without_command=True, subcommand_metavar="[prepare --metrics=A,B [--data=ZIP]]",
             epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
@click.option("--network",      help="Network file, an address, or a run folder for all its snapshots", metavar="PKL|URL|DIR", type=cli.PATH)
@click.option("--images",       help="Judge these images instead of a network's (FID, KID, PR, IS)", metavar="DIR|ZIP", type=cli.PATH)
@click.option("--metrics",      help="Such as fid50k_full, or fid1k_full for fewer images  [default: fid50k_full; none with --plot]", metavar="A,B",
              callback=cli.comma_list)
@click.option("--data",         help="Real images  [default: what the network was trained on]", metavar="ZIP|DIR", type=cli.PATH)
@click.option("--mirror",       help="Real images mirrored, too; the _full metrics never do so  [default: as in training]", type=bool, metavar="BOOL")
@cli.samples_option
@cli.detector_option
@cli.pose_regressor_option
@cli.embedding_option
@click.option("--gpus",         help="Number of GPUs, or of processes on a CPU; does not change the result", type=click.IntRange(min=1), default=1)
@cli.device_option
@click.option("--seed",         help="Of latents, cameras and noise", type=click.IntRange(0, 2**32 - 1), default=0)
@click.option("--plot",         help="Draw the metrics of the run's snapshots: metrics.png in its folder", is_flag=True)
@click.option("--verbose",      help="Progress on the screen", type=bool, default=True, metavar="BOOL")
@click.pass_context
def main(ctx: click.Context, network: str | None, images: str | None, metrics: tuple[str, ...] | None, data: str | None,
         mirror: bool | None, samples: int | None, detector: tuple[str, ...], pose_regressor: str | None,
         embedding: str | None, gpus: int, device: str, seed: int, plot: bool, verbose: bool) -> None:
    """Compute metrics of a network, of a run's snapshots, or of images. Prints a table; writes metric-NAME.jsonl."""
    if ctx.invoked_subcommand is not None:
        typed = click.core.ParameterSource.COMMANDLINE
        given = [name for name in ctx.params if ctx.get_parameter_source(name) == typed]
        if given:
            flag = given[0].replace("_", "-")
            raise UserError(f"--{flag}: stands before `{ctx.invoked_subcommand}`; put options behind it")
        return
    if (network is None) == (images is None):
        both = f"--images={images}: excludes --network={network}; give one of them"
        neither = "--network, --images: give one of them, a network to judge or a folder of images"
        raise UserError(neither if network is None else both)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    snapshots, run_dir = find_snapshots(network) if network is not None else ([], None)
    if plot and run_dir is None:
        raise UserError(f"--plot: draws the metrics of a run's snapshots, and --network={network} lies in no run "
                        "folder; give one")
    if not metrics and not plot:
        if metrics == ():
            raise UserError("--metrics=none: leaves nothing to compute; name a metric, or give --plot")
        metrics = ("fid50k_full",)
    if metrics:
        from metrics import detector_options
        from torch_utils import distributed, signals
        options = dict(detector_options(detector, pose_regressor, embedding), seed=seed)
        if images is not None:
            options["images_kwargs"] = folder_kwargs(images)
        device = distributed.choose_device(device, gpus)
        plan = Plan([], snapshots, run_dir, data, mirror, gpus, device, verbose, options)
        plan.names = check(plan, metrics, samples)
        try:
            distributed.launch(run_process, plan.gpus, plan.device, plan)
        except signals.Interrupted as error:
            sys.exit(128 + error.args[0])
    if plot:
        from metrics.results import plot_run
        print(f"Drew {plot_run(run_dir)}.")


@main.command()
@click.option("--metrics",      help="Metrics to be computed later  [default: fid50k_full,pr50k3_full]", metavar="A,B", callback=cli.comma_list)
@click.option("--data",         help="For camera metrics: the data that their detectors are trained on", metavar="ZIP|DIR", type=cli.PATH)
@cli.device_option
def prepare(metrics: tuple[str, ...] | None, data: str | None, device: str) -> None:
    """Download or train the detectors of metrics, into the cache (DNNLIB_CACHE_DIR)."""
    from metrics import detectors, metric_main
    from torch_utils import distributed
    requests = metric_main.parse_metrics(["fid50k_full", "pr50k3_full"] if metrics is None else metrics)
    kwargs = {} if data is None else dict(folder_kwargs(data), use_labels=True)
    needed: dict[str, list[str]] = {}
    for request in requests:
        for kind, use in request.metric.detectors:
            needed.setdefault(kind, []).append(use)
    chosen = distributed.choose_device(device)
    for kind in needed:                                 # find mistakes before the first training, which takes minutes
        detectors.require(kind, kwargs)
    for kind, uses in needed.items():
        path = detectors.prepare(kind, kwargs, chosen)
        for use in uses:
            detectors.check(kind, use, path)
        print(f"{kind}: {path}\n  sha256 {detectors.sha256_of(path)}")
    if not needed:
        print("These metrics need no detector.")


calc_metrics = main                      # StyleGAN3's name of the command


if __name__ == "__main__":
    run_program(main)
