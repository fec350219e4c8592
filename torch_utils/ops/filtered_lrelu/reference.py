"""`filtered_lrelu` by its definition: the references of its four parts, one after the other."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from torch_utils.ops.bias_act import reference as bias_act
from torch_utils.ops.upfirdn2d import reference as upfirdn2d
from torch_utils.ops.upfirdn2d.reference import filter_size, output_size


class Settings(NamedTuple):
    """The numbers of a call, in the order of the registered operators' arguments."""

    up:             int
    down:           int
    padding:        tuple[int, int, int, int]   # (left, right, top, bottom), at the higher rate. Negative: crops.
    gain:           float
    slope:          float
    clamp:          float                       # Largest magnitude after the gain. Negative: no clamping.
    flip_filter:    bool                        # False: convolution. True: correlation. Of both filters.


class Sizes(NamedTuple):
    """(height, width) of an image on its way."""

    middle:         tuple[int, int]             # At the higher rate.
    result:         tuple[int, int]


def sizes(x: Tensor, fu: Tensor | None, fd: Tensor | None, settings: Settings) -> Sizes:
    """For x [N, C, H, W]."""
    up, down, (left, right, top, bottom), *_ = settings
    (fu_width, fu_height), (fd_width, fd_height) = filter_size(fu), filter_size(fd)
    height = output_size(x.shape[2], up, 1, top, bottom, fu_height)
    width = output_size(x.shape[3], up, 1, left, right, fu_width)
    result = output_size(height, 1, down, 0, 0, fd_height), output_size(width, 1, down, 0, 0, fd_width)
    return Sizes((height, width), result)


def filtered_lrelu(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, settings: Settings) -> Tensor:
    """x [N, C, H, W]; filters [n], [fh, fw] or None; b [C] or None."""
    up, down, padding, gain, slope, clamp, flip_filter = settings
    upsampling = upfirdn2d.Settings((up, up), (1, 1), padding, flip_filter, float(up ** 2))     # makes up for the zeros
    downsampling = upfirdn2d.Settings((1, 1), (down, down), (0, 0, 0, 0), flip_filter, 1.0)
    x = bias_act.bias_act(x, b, bias_act.Settings(1, "linear", 0.0, 1.0, -1.0))
    x = upfirdn2d.upfirdn2d(x, fu, upsampling)
    x = bias_act.bias_act(x, None, bias_act.Settings(1, "lrelu", slope, gain, clamp))
    return upfirdn2d.upfirdn2d(x, fd, downsampling)
