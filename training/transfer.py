"""Warm start: the weights of one network into another, which may see rays where the first does not, or larger images.

`ray_init='zero'` makes the first image equal to the source's, upsampled where the target's are larger, while gradients
reach the rays from step 0; `'random'` is the published rule, which copies what fits and leaves the rest as initialised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from dnnlib import UserError
from torch_utils import misc
from training.growing import Growth, find_growths
from training.ray_conditioning import RayConditioning

RAY_CHANNELS = RayConditioning.num_channels
DESIGNED = (".up_filter", ".down_filter")               # StyleGAN3 computes these for one image size; the same shape may hold another filter
EXTRA = "camera_predictor."              # not counted in the share that matches: D can do without, and it learns fast


@dataclass
class TransferReport:
    """What became of each tensor of the target."""

    network: str
    copied: list[str] = field(default_factory=list)     # same name, same shape
    widened: list[str] = field(default_factory=list)    # and the ray channels added
    grown: list[str] = field(default_factory=list)      # of new blocks that begin by resampling
    new: list[str] = field(default_factory=list)        # the source has no such name
    skipped: list[str] = field(default_factory=list)    # the source's does not fit
    unused: list[str] = field(default_factory=list)     # of the source
    matched_share: float = 0.0                          # of the target's parameters: all but new and skipped
    growths: list[Growth] = field(default_factory=list, repr=False)     # also those that an obstacle leaves at random

    def lines(self) -> list[str]:
        """The table, one line per kind, naming what is not simply copied."""
        rows = []
        for kind in ("copied", "widened", "grown", "new", "skipped", "unused"):
            names = getattr(self, kind)
            detail = "" if kind == "copied" or not names else "  " + ", ".join(names[:6]) + (f", ... ({len(names) - 6} more)" if len(names) > 6 else "")
            rows.append(f"  {self.network:<6}{kind:<9}{len(names):>4}{detail}")
        return rows


def sources_of(networks: dict, file: str) -> tuple[dict[str, torch.nn.Module | None], list[str]]:
    """What G, D and G_ema start from, and what to say where the file lacks one: G and its average stand in for each other."""
    G, D, G_ema = (networks.get(name) for name in ("G", "D", "G_ema"))
    if G is None and G_ema is None:
        raise UserError(f"--resume={file}: holds no generator; give a network-snapshot-*.pkl, or leave --resume out")
    notes = [f"{file} has no {name}: it starts {how}." for name, module, how in
             [("G", G, "from G_ema"), ("G_ema", G_ema, "from G"), ("D", D, "fresh")] if module is None]
    return dict(G=G if G is not None else G_ema, D=D, G_ema=G_ema if G_ema is not None else G), notes


def compare(target: torch.nn.Module, source: torch.nn.Module, ray_init: str = "zero",
            network: str = "G") -> TransferReport:
    """What `warm_start` would do, from shapes alone: the target may live on the meta device."""
    assert ray_init in ("zero", "random"), ray_init
    have = dict(misc.named_params_and_buffers(source))
    report = TransferReport(network, growths=find_growths(target, source) if ray_init == "zero" else [])
    growths = [growth for growth in report.growths if not growth.obstacle]
    grown = tuple(name for growth in growths for name in growth.names)
    absorbed = tuple(growth.absorbed for growth in growths)
    parameters = {name for name, _ in target.named_parameters()}
    other_size = getattr(source, "img_resolution", None) != getattr(target, "img_resolution", None)
    total = matched = 0
    for name, tensor in misc.named_params_and_buffers(target):
        if name.startswith(grown):
            kind = "grown"
        elif name not in have:
            kind = "new"
        elif other_size and name.endswith(DESIGNED):
            kind = "skipped"
        elif have[name].shape == tensor.shape:
            kind = "copied"
        else:
            kind = "skipped" if _widened_dim(tensor, have[name]) is None else "widened"
        getattr(report, kind).append(name)
        if name in parameters and not name.startswith(EXTRA):
            total += tensor.numel()
            matched += tensor.numel() if kind in ("copied", "widened", "grown") else 0
    wanted = {name for name, _ in misc.named_params_and_buffers(target)}
    report.unused = sorted(name for name in have.keys() - wanted if not name.startswith(absorbed))
    report.matched_share = matched / max(total, 1)
    return report


@torch.no_grad()
def warm_start(target: torch.nn.Module, source: torch.nn.Module, ray_init: str = "zero", network: str = "G") -> TransferReport:
    """Copies the source's parameters and buffers into `target`, which is as initialised, widening where it has ray
    channels and growing where it is for larger images. Returns what happened.
    """
    report = compare(target, source, ray_init, network)
    have, want = (dict(misc.named_params_and_buffers(module)) for module in (source, target))
    modules = dict(target.named_modules())
    for name in report.copied:
        want[name].copy_(have[name])
    for name in report.widened:
        _widen(want[name], have[name], _widened_dim(want[name], have[name]), ray_init, modules[name.rpartition(".")[0]])
    for growth in report.growths:
        if not growth.obstacle:
            growth.start()
    return report


def _widened_dim(target: torch.Tensor, source: torch.Tensor) -> int | None:
    """The dimension in which the target has the ray channels more: input channels of kernels, rows of style affines."""
    if target.ndim != source.ndim:
        return None
    grown = [d for d in range(target.ndim) if target.shape[d] != source.shape[d]]
    expected = 1 if target.ndim == 4 else 0
    return expected if grown == [expected] and target.shape[expected] == source.shape[expected] + RAY_CHANNELS else None


def _widen(target: torch.Tensor, source: torch.Tensor, dim: int, ray_init: str, module: torch.nn.Module) -> None:
    old, grown = source.shape[dim], target.shape[dim]
    target.narrow(dim, 0, old).copy_(source)
    if ray_init == "random" or target.ndim != 4:
        return                           # new rows of an affine stay as initialised: were they zero too, no gradient would reach the rays
    target.narrow(dim, old, grown - old).zero_()
    if hasattr(module, "weight_gain"):   # 1 / sqrt(fan-in) without demodulation: the fan-in has grown
        target.narrow(dim, 0, old).mul_(math.sqrt(grown / old))


def check_match(reports: list[TransferReport], source: str) -> None:
    """Refuses a warm start in which under half of a network's parameters fit."""
    for report in reports:
        if report.matched_share < 0.5:
            examples = ", ".join((report.skipped or report.new)[:3])
            raise UserError(f"--resume={source}: only {report.matched_share:.0%} of the parameters of {report.network} match (not: {examples}, ...); "
                            "resume from a network of the same resolution and channels (--cfg, --cbase, --cmax, --map-depth), or leave --resume out")


def describe_sizes(reports: list[TransferReport], have: int, want: int, source: str) -> list[str]:
    """What to say where the source makes images of `have` px and the target of `want`."""
    if have == want:
        return []
    shown = [report for report in reports if report.network in "GD"]
    way = dict(G="upsampling", D="downsampling")
    starts = [f"{report.network}'s new blocks start by {way[report.network]}" for report in shown if report.grown]
    shares = " and ".join(f"{report.matched_share:.0%} of {report.network}'s" for report in shown if not report.grown)
    said = ", ".join([*starts, f"{shares} parameters fit, the rest begins anew"] if shares else starts)
    obstacles = "".join(f" {report.network} cannot start by resampling: {growth.obstacle}."
                        for report in shown for growth in report.growths if growth.obstacle)
    layouts = any(name.endswith(DESIGNED) for name in reports[0].skipped)
    advice = (f" StyleGAN3's layers are laid out for one size, so that its images are lost: better take data of "
              f"{have} px, or a network of {want} px.") if layouts else ""
    return [f"{source} makes images of {have} px, and --data has {want} px: {said}.{obstacles}{advice}"]
