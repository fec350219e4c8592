"""Ideal translation and rotation of a band-limited image, which equivariance is measured against (Karras et al. 2021, appendix E).

Each operator returns (image, mask), [N, C, H, W] both; the mask is 1 where the result does not depend on what lies outside of x.
Shifts are in image widths and heights (> 0: to the right, down), angles in radians.
"""

from __future__ import annotations

import math

import torch

from torch_utils.ops import upfirdn2d

Pair = tuple[torch.Tensor, torch.Tensor]

UP = 4                                   # samples per pixel between which a rotated image is interpolated
REACH = 64                               # the sinc functions of a rotation filter are cut off so many pixels out


def apply_integer_translation(x: torch.Tensor, tx: float, ty: float) -> Pair:
    """Shifts x [N, C, H, W] by tx widths and ty heights, rounded to whole pixels; zeros move in."""
    height, width = x.shape[2:]
    right, down = round(float(tx) * width), round(float(ty) * height)
    return _shift(x, right, down), _shift(torch.ones_like(x), right, down)


def _shift(x: torch.Tensor, right: int, down: int) -> torch.Tensor:
    # Negative padding crops.
    return torch.nn.functional.pad(x, [right, -right, down, -down])


def apply_fractional_translation(x: torch.Tensor, tx: float, ty: float, a: int = 3) -> Pair:
    """Shifts x [N, C, H, W] by tx widths and ty heights, with a Lanczos filter of `a` lobes."""
    height, width = x.shape[2:]
    moved, mask = x, torch.ones_like(x)
    for axis, shift in ((3, float(tx) * width), (2, float(ty) * height)):
        whole = math.floor(shift)
        moved = _filter_axis(moved, _lanczos_taps(shift - whole, a, x), whole, axis)
        # Output pixel p takes input pixels p - whole - a + 1 .. p - whole + a - 1, and one more where the shift is whole.
        p = torch.arange(x.shape[axis], dtype=torch.int64, device=x.device) - whole
        inside = (p - a >= 0) & (p + a - 1 < x.shape[axis])
        mask = mask * inside.view([-1, 1] if axis == 2 else [-1])
    return moved, mask


def _lanczos_taps(fraction: float, a: int, like: torch.Tensor) -> torch.Tensor:
    """Weights [2 a] of the input pixels at offsets -a .. a - 1 for a shift by `fraction`, 0 to 1, of a pixel."""
    position = torch.arange(-a, a, dtype=torch.float64) + fraction
    taps = torch.sinc(position) * torch.sinc(position / a) * (position.abs() < a)
    return (taps / taps.sum()).to(like.device, torch.float32)


def _filter_axis(x: torch.Tensor, taps: torch.Tensor, whole: int, axis: int) -> torch.Tensor:
    """sum over k of taps[k] x[p - whole + k - a], zeros outside."""
    before, after = len(taps) // 2 + whole, len(taps) // 2 - 1 - whole
    f = taps[None, :] if axis == 3 else taps[:, None]
    return upfirdn2d.upfirdn2d(x, f, padding=[before, after, 0, 0] if axis == 3 else [0, 0, before, after], flip_filter=True)


# ---------------------------------------------------------------------------------------------------------------------
# Rotation. A rotated image may hold only what both pixel grids can: its filter is the convolution of the two grids' ideal filters.

def rotation_filter(
    angle:      float,                                  # Between the two pixel grids [rad].
    a:          int             = 3,                    # Lobes of the Lanczos windows.
    amax:       int             = 6,                    # Size: pixels from the centre to the edge.
    up:         int             = 1,                    # Taps per pixel.
    cutoff_in:  float           = 1,                    # Of the image's own grid, 1 = half its sampling rate.
    cutoff_out: float           = 1,                    # Of the turned one.
    device:     torch.device | str = "cpu",
) -> torch.Tensor:                                      # [2 amax up - 1, 2 amax up - 1], float32; taps `up` apart sum to 1.
    """The windowed low-pass filter of a rotation."""
    half = REACH * up - 1
    t = torch.arange(-half, half + 1, dtype=torch.float32, device=device) / up      # [pixels]
    y, x = t[:, None], t[None, :]
    cos, sin = math.cos(angle), math.sin(angle)
    turned_x, turned_y = cos * x + sin * y, cos * y - sin * x

    def convolved(profile_in, profile_out):
        spectrum = torch.fft.fft2(profile_in(x) * profile_in(y)) * torch.fft.fft2(profile_out(turned_x) * profile_out(turned_y))
        return torch.fft.ifftshift(torch.fft.ifft2(spectrum).real)

    def window(position):
        return torch.sinc(position / a) * (position.abs() < a)

    f = convolved(lambda p: torch.sinc(p * cutoff_in), lambda p: torch.sinc(p * cutoff_out)) * convolved(window, window)
    edge = half - (amax * up - 1)
    f = f[edge : len(f) - edge, edge : len(f) - edge]
    for row in range(up):                               # every phase of the taps sees a constant as that constant
        for column in range(up):
            f[row::up, column::up] /= f[row::up, column::up].sum()
    return f.to(torch.float32)


def apply_fractional_rotation(x: torch.Tensor, angle: float, a: int = 3, **filter_kwargs: float) -> Pair:
    """Turns x [N, C, H, W] by `angle` about its centre, counter-clockwise as one sees it (the y axis points down). filter_kwargs: cutoff_in, cutoff_out."""
    angle = float(angle)
    f = rotation_filter(angle, a, 2 * a, UP, device=x.device, **filter_kwargs)
    reach = len(f) // 2                                 # in fine samples; beyond it the upsampled image is zero
    height, width = x.shape[2:]
    fine = upfirdn2d.upfirdn2d(x, f, up=UP, padding=[2 * reach] * 4)                # fine sample k is at pixel (k - reach) / UP
    where = _source_of_pixels(height, width, angle, x.device)                       # [H, W, 2], pixels
    turned = _sample(fine, where * UP + reach, "bilinear")
    inside = torch.zeros_like(fine[:1, :1])
    inside[:, :, 2 * reach - 1 : fine.shape[2] - 2 * reach - 3, 2 * reach - 1 : fine.shape[3] - 2 * reach - 3] = 1
    return turned, _sample(inside, where * UP + reach, "nearest").expand_as(turned).clone()


def apply_fractional_pseudo_rotation(x: torch.Tensor, angle: float, a: int = 3, **filter_kwargs: float) -> Pair:
    """The low-pass filter of a rotation alone: what an image that was turned by `angle` is compared through."""
    f = rotation_filter(-float(angle), a, 2 * a, device=x.device, **filter_kwargs)
    reach = len(f) // 2
    mask = torch.zeros_like(x)
    mask[:, :, reach : x.shape[2] - reach, reach : x.shape[3] - reach] = 1
    return upfirdn2d.filter2d(x, f), mask


def _source_of_pixels(height: int, width: int, angle: float, device: torch.device) -> torch.Tensor:
    """Where each pixel of the turned image comes from, [H, W, 2] as (column, row)."""
    x = ((torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width - 0.5)[None, :]
    y = ((torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height - 0.5)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([(cos * x - sin * y + 0.5) * width - 0.5, (sin * x + cos * y + 0.5) * height - 0.5], dim=2)


def _sample(x: torch.Tensor, where: torch.Tensor, mode: str) -> torch.Tensor:
    """x [N, C, h, w] at pixel coordinates where [H, W, 2], zeros outside."""
    size = torch.tensor([x.shape[3], x.shape[2]], device=x.device, dtype=torch.float32)
    grid = ((where + 0.5) / size * 2 - 1).expand(len(x), -1, -1, -1)
    return torch.nn.functional.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
