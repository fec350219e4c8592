"""Warm start: copies the weights of one network into another, which may see rays or larger images.

With `ray_init='zero'` the first image equals the source's, upsampled if the target's are larger, and gradients reach
the rays from step 0. `'random'` is the published rule: it copies what fits and leaves the rest as initialised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dnnlib import UserError
from torch_utils import misc
from torch_utils.ops.bias_act import activation_funcs
from training.networks.layers import Conv2dLayer, sqrt_half
from training.networks.ray_conditioning import RayConditioning

RAY_CHANNELS = RayConditioning.num_channels
DESIGNED = (".up_filter", ".down_filter")               # StyleGAN3 computes these for one image size
EXTRA = "camera_predictor."              # does not count in the share that matches: D works without it


@dataclass
class TransferReport:
    """What became of each tensor of the target."""

    network: str
    copied: list[str] = field(default_factory=list)     # same name, same shape
    widened: list[str] = field(default_factory=list)    # and the ray channels added
    grown: list[str] = field(default_factory=list)      # of new blocks that begin by resampling
    new: list[str] = field(default_factory=list)        # the source has no such name
    skipped: list[str] = field(default_factory=list)    # the source's does not fit
    unused: list[str] = field(default_factory=list)     # the target has no such name
    matched_share: float = 0.0                          # of the target's parameters: all but new and skipped
    growths: list[Growth] = field(default_factory=list, repr=False)     # also those that an obstacle leaves at random

    def lines(self) -> list[str]:
        """The table, one line per kind, naming what is not simply copied."""
        rows = []
        for kind in ("copied", "widened", "grown", "new", "skipped", "unused"):
            names = getattr(self, kind)
            more = f", ... ({len(names) - 6} more)" if len(names) > 6 else ""
            detail = "" if kind == "copied" or not names else "  " + ", ".join(names[:6]) + more
            rows.append(f"  {self.network:<6}{kind:<9}{len(names):>4}{detail}")
        return rows


def sources_of(networks: dict, file: str) -> tuple[dict[str, torch.nn.Module | None], list[str]]:
    """What G, D and G_ema start from, and notes about networks that the file lacks. G and its average stand in for each
    other. Raises UserError if there is no generator.
    """
    G, D, G_ema = (networks.get(name) for name in ("G", "D", "G_ema"))
    if G is None and G_ema is None:
        raise UserError(f"--resume={file}: holds no generator; give a network-snapshot-*.pkl, or leave --resume out")
    notes = [f"{file} has no {name}: it starts {how}." for name, module, how in
             [("G", G, "from G_ema"), ("G_ema", G_ema, "from G"), ("D", D, "fresh")] if module is None]
    return dict(G=G if G is not None else G_ema, D=D, G_ema=G_ema if G_ema is not None else G), notes


def compare(target: torch.nn.Module, source: torch.nn.Module, ray_init: str = "zero",
            network: str = "G") -> TransferReport:
    """What `warm_start` would do, judged by shapes: the target may live on the meta device."""
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
def warm_start(target: torch.nn.Module, source: torch.nn.Module, ray_init: str = "zero",
               network: str = "G") -> TransferReport:
    """Copies the source's parameters and buffers into `target`, which is as initialised. Widens what has ray channels
    in the target, and starts the blocks for larger images. Returns what happened.
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


def _widened_dim(target: Tensor, source: Tensor) -> int | None:
    """The dimension in which the target also has the ray channels: input channels of kernels, rows of style affines."""
    if target.ndim != source.ndim:
        return None
    grown = [d for d in range(target.ndim) if target.shape[d] != source.shape[d]]
    expected = 1 if target.ndim == 4 else 0
    fits = grown == [expected] and target.shape[expected] == source.shape[expected] + RAY_CHANNELS
    return expected if fits else None


def _widen(target: Tensor, source: Tensor, dim: int, ray_init: str, module: torch.nn.Module) -> None:
    old, grown = source.shape[dim], target.shape[dim]
    target.narrow(dim, 0, old).copy_(source)
    if ray_init == "random" or target.ndim != 4:
        return                           # zero rows of an affine as well would keep gradients from the rays
    target.narrow(dim, old, grown - old).zero_()
    if hasattr(module, "weight_gain"):   # 1 / sqrt(fan-in) without demodulation: the fan-in has grown
        target.narrow(dim, 0, old).mul_(math.sqrt(grown / old))


def check_match(reports: list[TransferReport], source: str) -> None:
    """Raises UserError if less than half of a network's parameters match."""
    for report in reports:
        if report.matched_share < 0.5:
            examples = ", ".join((report.skipped or report.new)[:3])
            raise UserError(f"--resume={source}: only {report.matched_share:.0%} of the parameters of "
                            f"{report.network} match (not: {examples}, ...); resume from a network of the same "
                            "resolution and channels (--cfg, --cbase, --cmax, --map-depth), or leave --resume out")


def describe_sizes(reports: list[TransferReport], have: int, want: int, source: str) -> list[str]:
    """A note if the source makes images of `have` px and the target of `want`."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Growing: new blocks for a larger image size, on top of those of a trained network, which keep their weights. At first
# the new blocks of G only upsample the image, and those of D only downsample it. For StyleGAN2's blocks.

# A new branch starts with this share of its usual weight. With 0 the convolutions before it would get no gradient. Two
# equal halves of opposite sign would not help: a block that adds nothing for any style gives its styles no gradient.
# float16 rounds such weights to 0: there the convolutions begin to learn one step after the branch.
SHARE = 1e-7


class Growth:
    """The blocks that `target`, a synthesis network or a discriminator, has on top of those of `source`.

    prefix: of the network's names, "synthesis." in G and "" in D. Reads no weights until `start`, so `target` may live
    on the meta device.
    """

    def __init__(self, prefix: str, target: nn.Module, source: nn.Module):
        new = sorted(set(target.block_resolutions) - set(source.block_resolutions), reverse=True)
        self.blocks = [getattr(target, f"b{res}") for res in new]           # from the image inwards
        self.top = getattr(source, f"b{source.img_resolution}")
        self.is_discriminator = hasattr(self.top, "fromrgb")
        self.names = tuple(f"{prefix}b{res}." for res in new)               # how the names in the new blocks begin
        self.absorbed = f"{prefix}b{source.img_resolution}.fromrgb."        # lives on in the innermost new block

    @property
    def obstacle(self) -> str:
        """Why the new blocks have to start at random; "" if they do not."""
        outer = self.blocks[0]
        if outer.architecture == "skip":
            return ""
        if not self.is_discriminator:
            return f"its architecture {outer.architecture!r} has no image at each size; 'skip' has"
        if {outer.conv0.activation, self.top.fromrgb.activation} != {"lrelu"}:
            return "only with the activation 'lrelu' could they downsample"
        have, need = outer.conv0.in_channels, 2 * self._channels_read()
        if have < need:
            return f"at {outer.resolution} px it has {have} channels, and needs {need} to downsample"
        return ""

    def start(self) -> None:
        """Gives the new blocks, which are as initialised, the weights they start with."""
        if self.is_discriminator and self.top.architecture != "skip":
            self._downsample()
            return
        for block in self.blocks:        # the image passes around them
            (block.conv1 if self.is_discriminator else block.torgb).weight.mul_(SHARE)

    def _channels_read(self) -> int:
        """Image channels, rays included, that both networks see."""
        return min(self.blocks[0].img_channels, self.top.img_channels)

    def _downsample(self) -> None:
        """Lets pairs of features carry the image through the new layers: lrelu(x) - lrelu(-x) is linear in x. The last
        layer then does what `fromrgb` did. Features beyond the pairs stay as initialised; nothing reads them yet.
        """
        fromrgb = self.top.fromrgb
        channels = self._channels_read()
        image = torch.eye(channels, dtype=torch.float32)
        lrelu = activation_funcs["lrelu"]
        carry = torch.cat([image, -image]) / lrelu.def_gain                 # image -> pairs
        read = torch.cat([image, -image], dim=1) / (1 + lrelu.def_alpha)    # pairs -> image
        convert = (fromrgb.weight * fromrgb.weight_gain)[:, :channels, 0, 0].float().cpu()
        _set(self.blocks[0].fromrgb, carry)
        for block in self.blocks:
            has_skip = block.architecture == "resnet"
            gain = sqrt_half() if has_skip else 1
            _set(block.conv0, carry @ read)
            if block is self.blocks[-1]:
                _set(block.conv1, convert @ read, fromrgb.bias, gain)
            else:
                _set(block.conv1, carry @ read, None, gain)
            if has_skip:
                block.skip.weight.zero_()


def find_growths(target: nn.Module, source: nn.Module) -> list[Growth]:
    """One Growth for each network of blocks in `target` whose counterpart in `source` is for smaller images."""
    sources = dict(source.named_modules())
    return [Growth(f"{name}." if name else "", network, sources[name]) for name, network in target.named_modules()
            if name in sources and _is_larger(network, sources[name])]


def _is_larger(target: nn.Module, source: nn.Module) -> bool:
    """Whether both are networks of blocks that differ only in the image size."""
    if not (hasattr(target, "block_resolutions") and hasattr(source, "block_resolutions")):
        return False
    if not 8 <= source.img_resolution < target.img_resolution or target.img_channels != source.img_channels:
        return False
    architectures = {getattr(network, f"b{network.img_resolution}").architecture for network in (target, source)}
    have, want = (dict(misc.named_params_and_buffers(network)) for network in (source, target))
    kernels = [name for name in have.keys() & want.keys() if want[name].ndim == 4]
    return len(architectures) == 1 and all(len(have[name]) == len(want[name]) for name in kernels)     # output channels


def _set(layer: Conv2dLayer, matrix: Tensor, bias: Tensor | None = None, gain: float = 1) -> None:
    """Sets weights so that the first outputs of `layer`, called with `gain`, are lrelu(matrix x + bias) at each pixel.

    matrix: [outputs, inputs], at most those of the layer. bias: [outputs]; None: leave it as it is.
    """
    outputs, inputs = matrix.shape
    centre = layer.weight.shape[2] // 2
    layer.weight[:outputs].zero_()
    layer.weight[:outputs, :inputs, centre, centre].copy_(matrix / (layer.weight_gain * gain))
    if bias is not None:
        layer.bias[:outputs].copy_(bias / gain)
