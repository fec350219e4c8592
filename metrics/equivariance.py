"""Equivariance of StyleGAN3's networks (Karras et al. 2021, section 3, appendix E): does the image move with its input?

EQ-T and EQ-R are the PSNR [dB] between the image of a moved input and the moved image, dynamic range -1 to 1. If the
network sees pinhole rays, the camera moves along. Rays of the published convention fit no camera; they do not move, and
the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import camera_utils
from dnnlib.util import UserError
from metrics.metric_utils import MetricOptions, count_broken, iterate_samples, rng, sum_over_ranks
from torch_utils.ops import upfirdn2d

MAX_SHIFT = 0.125                        # of the image width
MIN_RESOLUTION = 16                      # in smaller images rotation filters leave no pixel to compare
UP = 4                                   # samples per pixel between which a rotated image is interpolated
REACH = 64                               # pixels from the centre at which the sinc functions of a rotation filter end

Pair = tuple[Tensor, Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Ideal translation and rotation of a band-limited image (appendix E).
#
# Each operator returns (image, mask), [N, C, H, W] both. The mask is 1 where the result does not depend on pixels
# outside x. Shifts are in image widths and heights (> 0: to the right, down), angles in radians.

def apply_integer_translation(x: Tensor, tx: float, ty: float) -> Pair:
    """Shifts x [N, C, H, W] by tx widths and ty heights, rounded to whole pixels; zeros move in."""
    height, width = x.shape[2:]
    right, down = round(float(tx) * width), round(float(ty) * height)
    return _shift(x, right, down), _shift(torch.ones_like(x), right, down)


def _shift(x: Tensor, right: int, down: int) -> Tensor:
    # Negative padding crops.
    return torch.nn.functional.pad(x, [right, -right, down, -down])


def apply_fractional_translation(x: Tensor, tx: float, ty: float, a: int = 3) -> Pair:
    """Shifts x [N, C, H, W] by tx widths and ty heights, with a Lanczos filter of `a` lobes."""
    height, width = x.shape[2:]
    moved, mask = x, torch.ones_like(x)
    for axis, shift in ((3, float(tx) * width), (2, float(ty) * height)):
        whole = math.floor(shift)
        moved = _filter_axis(moved, _lanczos_taps(shift - whole, a, x), whole, axis)
        # Output pixel p takes input pixels p - whole - a + 1 .. p - whole + a - 1, and one more if the shift is whole.
        p = torch.arange(x.shape[axis], dtype=torch.int64, device=x.device) - whole
        inside = (p - a >= 0) & (p + a - 1 < x.shape[axis])
        mask = mask * inside.view([-1, 1] if axis == 2 else [-1])
    return moved, mask


def _lanczos_taps(fraction: float, a: int, like: Tensor) -> Tensor:
    """Weights [2 a] of the input pixels at offsets -a .. a - 1 for a shift by `fraction`, 0 to 1, of a pixel."""
    position = torch.arange(-a, a, dtype=torch.float64) + fraction
    taps = torch.sinc(position) * torch.sinc(position / a) * (position.abs() < a)
    return (taps / taps.sum()).to(like.device, torch.float32)


def _filter_axis(x: Tensor, taps: Tensor, whole: int, axis: int) -> Tensor:
    """sum over k of taps[k] x[p - whole + k - a] along the axis, with zeros outside."""
    before, after = len(taps) // 2 + whole, len(taps) // 2 - 1 - whole
    f = taps[None, :] if axis == 3 else taps[:, None]
    padding = [before, after, 0, 0] if axis == 3 else [0, 0, before, after]
    return upfirdn2d.upfirdn2d(x, f, padding=padding, flip_filter=True)


# A rotated image may hold only frequencies that both pixel grids can: its filter is the convolution of the two grids'
# ideal filters.

def rotation_filter(
    angle:      float,                                  # Between the two pixel grids [rad].
    a:          int             = 3,                    # Lobes of the Lanczos windows.
    amax:       int             = 6,                    # Size: pixels from the centre to the edge.
    up:         int             = 1,                    # Taps per pixel.
    cutoff_in:  float           = 1,                    # Of the image's own grid, 1 = half its sampling rate.
    cutoff_out: float           = 1,                    # Of the turned one.
    device:     torch.device | str = "cpu",
) -> Tensor:                                      # [2 amax up - 1, 2 amax up - 1], float32; taps `up` apart sum to 1.
    """The windowed low-pass filter of a rotation."""
    half = REACH * up - 1
    t = torch.arange(-half, half + 1, dtype=torch.float32, device=device) / up      # [pixels]
    y, x = t[:, None], t[None, :]
    cos, sin = math.cos(angle), math.sin(angle)
    turned_x, turned_y = cos * x + sin * y, cos * y - sin * x

    def convolved(profile_in, profile_out):
        spectrum = (torch.fft.fft2(profile_in(x) * profile_in(y))
                    * torch.fft.fft2(profile_out(turned_x) * profile_out(turned_y)))
        return torch.fft.ifftshift(torch.fft.ifft2(spectrum).real)

    def window(position):
        return torch.sinc(position / a) * (position.abs() < a)

    low_pass = convolved(lambda p: torch.sinc(p * cutoff_in), lambda p: torch.sinc(p * cutoff_out))
    f = low_pass * convolved(window, window)
    edge = half - (amax * up - 1)
    f = f[edge : len(f) - edge, edge : len(f) - edge]
    for row in range(up):                               # each phase of the taps keeps a constant image unchanged
        for column in range(up):
            f[row::up, column::up] /= f[row::up, column::up].sum()
    return f.to(torch.float32)


def apply_fractional_rotation(x: Tensor, angle: float, a: int = 3, **filter_kwargs: float) -> Pair:
    """Turns x [N, C, H, W] about its centre, counter-clockwise on the screen. filter_kwargs: cutoff_in, cutoff_out."""
    angle = float(angle)
    f = rotation_filter(angle, a, 2 * a, UP, device=x.device, **filter_kwargs)
    reach = len(f) // 2                                 # in fine samples; beyond it the upsampled image is zero
    height, width = x.shape[2:]
    fine = upfirdn2d.upfirdn2d(x, f, up=UP, padding=[2 * reach] * 4)        # fine sample k is at pixel (k - reach) / UP
    where = _source_of_pixels(height, width, angle, x.device)                       # [H, W, 2], pixels
    turned = _sample(fine, where * UP + reach, "bilinear")
    inside = torch.zeros_like(fine[:1, :1])
    rows, columns = (slice(2 * reach - 1, size - 2 * reach - 3) for size in fine.shape[2:])
    inside[:, :, rows, columns] = 1
    return turned, _sample(inside, where * UP + reach, "nearest").expand_as(turned).clone()


def apply_fractional_pseudo_rotation(x: Tensor, angle: float, a: int = 3, **filter_kwargs: float) -> Pair:
    """Applies only the low-pass filter of a rotation by `angle`, for comparison with an image that was turned."""
    f = rotation_filter(-float(angle), a, 2 * a, device=x.device, **filter_kwargs)
    reach = len(f) // 2
    mask = torch.zeros_like(x)
    mask[:, :, reach : x.shape[2] - reach, reach : x.shape[3] - reach] = 1
    return upfirdn2d.filter2d(x, f), mask


def _source_of_pixels(height: int, width: int, angle: float, device: torch.device) -> Tensor:
    """The point of the original that each pixel of the turned image shows, (column, row) [H, W, 2]."""
    x = ((torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width - 0.5)[None, :]
    y = ((torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height - 0.5)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([(cos * x - sin * y + 0.5) * width - 0.5, (sin * x + cos * y + 0.5) * height - 0.5], dim=2)


def _sample(x: Tensor, where: Tensor, mode: str) -> Tensor:
    """x [N, C, h, w] at pixel coordinates where [H, W, 2], zeros outside."""
    size = torch.tensor([x.shape[3], x.shape[2]], device=x.device, dtype=torch.float32)
    grid = ((where + 0.5) / size * 2 - 1).expand(len(x), -1, -1, -1)
    return torch.nn.functional.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)


# ---------------------------------------------------------------------------------------------------------------------
# Motions: matrices [3, 3] float64 from points of the moved image to points of the original. Both are (x, y, 1) in image
# widths from the centre.

def translation_of(tx: float, ty: float) -> Tensor:
    """The motion of an image that moves to the right by tx and down by ty."""
    return torch.tensor([[1, 0, -tx], [0, 1, -ty], [0, 0, 1]], dtype=torch.float64)


def rotation_of(angle: float) -> Tensor:
    """The motion of an image that `apply_fractional_rotation` turns by `angle` [rad]."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def move_cameras(c: Tensor, motion: Tensor) -> Tensor:
    """Camera labels [N, 25] -> those of the moved image, whose ray at p is the old one at motion p.

    A is the inverse motion in image coordinates. A K = K_new Q, where K_new is triangular and Q a turn about the
    optical axis: the principal point moves with the image, and the camera rolls by Q^T.
    """
    camera = camera_utils.Camera.from_label(c.double())
    centre = translation_of(-0.5, -0.5)                                     # from the centre to image coordinates
    A = (centre @ motion.inverse() @ centre.inverse()).to(c.device)
    lens = A @ camera.intrinsics                                            # [N, 3, 3]
    top, bottom = lens[:, 0, :2], lens[:, 1, :2]
    length = bottom.norm(dim=1, keepdim=True)
    second = bottom / length                                                # rows of Q
    first = torch.stack([second[:, 1], -second[:, 0]], dim=1)
    K = camera.intrinsics.clone()
    K[:, 0, 0], K[:, 0, 1], K[:, 1, 1] = (top * first).sum(dim=1), (top * second).sum(dim=1), length[:, 0]
    K[:, :2, 2] = lens[:, :2, 2]
    cam2world = camera.cam2world.clone()
    cam2world[:, :3, :2] = camera.cam2world[:, :3, :2] @ torch.stack([first, second], dim=1).mT
    return camera_utils.Camera(cam2world, K).to_label().to(c.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons: (motion, compare), where compare(base, moved) -> (difference, mask).

Comparison = tuple[Tensor, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]


def integer_translation(draw: np.random.Generator, resolution: int) -> Comparison:
    """By a whole number of pixels."""
    tx, ty = np.rint(draw.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * resolution) / resolution
    return translation_of(tx, ty), lambda base, moved: _against(apply_integer_translation(base, tx, ty), moved)


def fractional_translation(draw: np.random.Generator, resolution: int) -> Comparison:
    """By any distance."""
    tx, ty = draw.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    return translation_of(tx, ty), lambda base, moved: _against(apply_fractional_translation(base, tx, ty), moved)


def fractional_rotation(draw: np.random.Generator, resolution: int) -> Comparison:
    """By any angle. The moved image goes through the filter that the rotation of the base image applies."""
    angle = draw.uniform(-math.pi, math.pi)

    def compare(base: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        filtered, mask = apply_fractional_pseudo_rotation(moved, angle)
        difference, also = _against(apply_fractional_rotation(base, angle), filtered)
        return difference, mask * also

    return rotation_of(angle), compare


def _against(expected: tuple[Tensor, Tensor], moved: Tensor) -> tuple[Tensor, Tensor]:
    image, mask = expected
    return image - moved, mask


def compute_equivariance(opts: MetricOptions, choose: Callable[[np.random.Generator, int], Comparison]) -> dict:
    """PSNR over opts.num_samples images. All images of a pass have the same motion, as a network has one transform."""
    G = opts.G
    transform = G.synthesis.input.transform
    saved = transform.clone()
    follows = getattr(G, "rays", None) == "pinhole"
    mapping_kwargs, synthesis_kwargs = opts.split_kwargs(noise_mode="const", force_fp32=True)
    sums = np.zeros([2])
    try:
        with opts.bar(opts.num_samples, "moved images") as bar:
            for batch in iterate_samples(opts, opts.num_samples):
                motion, compare = choose(rng(opts.seed, "motion", int(batch.index[0])), G.img_resolution)
                ws = G.mapping(batch.z, batch.c, **mapping_kwargs)
                images = []
                moved = move_cameras(batch.c, motion) if follows else batch.c
                for matrix, c in ((torch.eye(3, dtype=torch.float32), batch.c), (motion, moved)):
                    transform.copy_(matrix)
                    images.append(count_broken(opts, G.synthesis(ws, c, **synthesis_kwargs)).float())
                difference, mask = compare(*images)
                sums += [float((difference.square() * mask).double().sum()), float(mask.double().sum())]
                bar.update(len(batch.index) * opts.num_gpus)
    finally:
        transform.copy_(saved)
    squares, pixels = sum_over_ranks(opts, sums)
    result: dict = {opts.metric: psnr_db(squares / pixels)}
    if hasattr(G, "rays"):
        result[f"{opts.metric}_rays"] = ("pinhole: the camera moved along with the image" if follows
                                         else f"{G.rays}: the image moved, its rays did not")
    return result


def psnr_db(mean_square: float) -> float:
    """Peak signal-to-noise ratio of images from -1 to 1. 306 dB for equal images; nan if the mean is not finite."""
    if not math.isfinite(mean_square):
        return math.nan
    return 20 * math.log10(2) - 10 * math.log10(max(mean_square, 1e-30))


def check_resolution(opts: MetricOptions) -> None:
    if opts.G.img_resolution < MIN_RESOLUTION:
        raise UserError(f"the network makes images of {opts.G.img_resolution} px, of which filters leave nothing to "
                        f"compare; it takes {MIN_RESOLUTION} px or more: leave the metric out")


def eqt_int(opts: MetricOptions) -> dict:
    return compute_equivariance(opts, integer_translation)


def eqt_frac(opts: MetricOptions) -> dict:
    return compute_equivariance(opts, fractional_translation)


def eqr(opts: MetricOptions) -> dict:
    return compute_equivariance(opts, fractional_rotation)
