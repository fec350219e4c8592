"""Networks that grow: blocks for a larger image size on top of those of a trained network, which go on as they were.

At first the new blocks of G only upsample the image, and those of D only downsample it. For StyleGAN2's blocks.
"""

from __future__ import annotations

import torch
from torch import nn

from torch_utils import misc
from torch_utils.ops.bias_act import activation_funcs
from training.layers import Conv2dLayer, sqrt_half

# A new branch starts with this share of its usual weight. With 0 the convolutions before it would get no gradient. Nor
# would two equal halves with opposite signs do: where a block adds nothing for any style, its styles get no gradient.
# float16 cannot hold so little: there the convolutions follow one step after the branch.
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
        """Why the new blocks have to start at random; "" where they do not."""
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
        for block in self.blocks:        # the image takes its own way around them
            (block.conv1 if self.is_discriminator else block.torgb).weight.mul_(SHARE)

    def _channels_read(self) -> int:
        """Image channels, rays included, that both see."""
        return min(self.blocks[0].img_channels, self.top.img_channels)

    def _downsample(self) -> None:
        """lrelu(x) - lrelu(-x) is linear in x, so pairs of features carry an image through layers. The last layer does
        with it what `fromrgb` did. Features beyond the pairs stay as initialised; nobody reads them yet.
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
    """Every network of blocks in `target` whose counterpart in `source` is for smaller images."""
    sources = dict(source.named_modules())
    return [Growth(f"{name}." if name else "", network, sources[name]) for name, network in target.named_modules()
            if name in sources and _is_larger(network, sources[name])]


def _is_larger(target: nn.Module, source: nn.Module) -> bool:
    """Are both networks of blocks, equal but for the image size?"""
    if not (hasattr(target, "block_resolutions") and hasattr(source, "block_resolutions")):
        return False
    if not 8 <= source.img_resolution < target.img_resolution or target.img_channels != source.img_channels:
        return False
    architectures = {getattr(network, f"b{network.img_resolution}").architecture for network in (target, source)}
    have, want = (dict(misc.named_params_and_buffers(network)) for network in (source, target))
    kernels = [name for name in have.keys() & want.keys() if want[name].ndim == 4]
    return len(architectures) == 1 and all(len(have[name]) == len(want[name]) for name in kernels)     # outputs


def _set(layer: Conv2dLayer, matrix: torch.Tensor, bias: torch.Tensor | None = None, gain: float = 1) -> None:
    """Lets the first outputs of `layer`, called with `gain`, be lrelu(matrix x + bias) at each pixel, with lrelu's own
    gain alone. matrix: [outputs, inputs], both at most those of the layer; bias: [outputs], None: leave it.
    """
    outputs, inputs = matrix.shape
    centre = layer.weight.shape[2] // 2
    layer.weight[:outputs].zero_()
    layer.weight[:outputs, :inputs, centre, centre].copy_(matrix / (layer.weight_gain * gain))
    if bias is not None:
        layer.bias[:outputs].copy_(bias / gain)
