"""Augmentations in image space: they amplify or damp octaves of spatial frequency, add noise, cut out a rectangle."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from training.augment.transforms import Draw, DrawSource, change_some, pad_reflected

_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)              # of the bands in natural images (1/f), the lowest band first


def draw_gains(pipe: Any, source: DrawSource, strength: float, batch: int) -> Tensor:
    """[batch, bands] float32 on the CPU: the factor of each band. Changes one band after the other, and each time keeps
    the expected power.
    """
    power = torch.tensor(_POWER, dtype=torch.float32, device="cpu")
    gains = torch.ones([batch, len(_POWER)], dtype=torch.float32, device="cpu")
    for band, multiplier in enumerate(pipe.imgfilter_bands):
        if pipe.imgfilter * multiplier > 0:
            draw = Draw(source, f"imgfilter{band}", batch)
            factor = torch.exp2(draw.normal() * pipe.imgfilter_std)
            change = torch.ones_like(gains)
            change[:, band] = torch.where(draw.applies(pipe.imgfilter * multiplier * strength), factor, 1.0)
            gains = gains * change / (power * change.square()).sum(dim=1, keepdim=True).sqrt()
    return gains


def filter_bands(images: Tensor, gains: Tensor, bank: Tensor) -> Tensor:
    """images: [N, C, H, W]; gains: [N, bands] on the CPU; bank: [bands, taps]. Leaves images whose gains are all 1 as
    they are.
    """
    return change_some(images, (gains != 1).any(dim=1), lambda some, factors: _filter(some, factors, bank), gains)


def _filter(images: Tensor, gains: Tensor, bank: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    taps = (gains.to(bank.device, non_blocking=True) @ bank).to(images.dtype)                       # [N, T]
    taps = taps.repeat_interleave(channels, dim=0)                                                  # [N C, T]
    reach = taps.shape[1] // 2
    x = pad_reflected(images, reach, reach, reach, reach)
    x = x.reshape(1, batch * channels, height + 2 * reach, width + 2 * reach)
    x = conv2d(x, taps[:, None, None, :], groups=batch * channels)
    x = conv2d(x, taps[:, None, :, None], groups=batch * channels)
    return x.reshape(batch, channels, height, width)


def add_noise(images: Tensor, pipe: Any, source: DrawSource, strength: float) -> Tensor:
    """Adds normal noise to images [N, C, H, W]. Its standard deviation is drawn for each image."""
    if pipe.noise == 0:
        return images
    draw = Draw(source, "noise", len(images))
    sigma = torch.where(draw.applies(pipe.noise * strength), draw.half_normal() * pipe.noise_std, 0.0)      # [N]
    if not sigma.any():
        return images
    sigma = sigma.to(images.device, images.dtype, non_blocking=True)
    return images + draw.image_noise(images) * sigma[:, None, None, None]


def _pixel_centres(count: int) -> Tensor:
    """[count], relative to the image's side."""
    return (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) / count


def cut_out(images: Tensor, pipe: Any, source: DrawSource, strength: float) -> Tensor:
    """Sets a rectangle of `cutout_size` times the image's sides to zero in images [N, C, H, W]. Its centre is anywhere
    in the image.
    """
    if pipe.cutout == 0:
        return images
    batch, _, height, width = images.shape
    draw = Draw(source, "cutout", batch)
    side = draw.applies(pipe.cutout * strength).to(torch.float32) * pipe.cutout_size        # [N], relative to the image
    if not side.any():
        return images
    centre = draw.uniform(2)                                                                # [N, 2]: x, y
    outside_x = (_pixel_centres(width) - centre[:, :1]).abs() >= side[:, None] / 2          # [N, W]
    outside_y = (_pixel_centres(height) - centre[:, 1:]).abs() >= side[:, None] / 2         # [N, H]
    keeps = (outside_y[:, :, None] | outside_x[:, None, :]).unsqueeze(1)                    # [N, 1, H, W]
    return images * keeps.to(images.device, images.dtype, non_blocking=True)


# ---------------------------------------------------------------------------------------------------------------------
# Orthogonal wavelet filters from their definition, and the filter bank that splits an image into octaves.

def symlet(moments: int) -> np.ndarray:
    """Low-pass taps of the least asymmetric orthogonal wavelet with that many vanishing moments: [2 * moments] float64,
    sum 1.

    Daubechies (Ten Lectures on Wavelets, chapters 6 and 8): with y = sin^2(w / 2), the squared magnitude is
    (1 - y)^M P(y) with P(y) = sum_k binom(M - 1 + k, k) y^k. Each root of P gives a pair z, 1/z of zeros of the
    filter's square, of which the filter gets one. This takes the most symmetric choice and, of it and its reversal, the
    one that leans to the left.
    """
    polynomial = [math.comb(moments - 1 + k, k) for k in range(moments)]
    pairs = []
    for y in np.roots(polynomial[::-1]):
        if y.imag >= -1e-9:                             # which brings its conjugate along
            zeros = np.roots([1, 4 * y - 2, 1])         # z + 1/z = 2 - 4 y
            pairs.append([[z] if abs(y.imag) < 1e-9 else [z, z.conj()] for z in zeros])
    found = []
    for choice in itertools.product(*pairs):
        taps = np.poly([-1.0] * moments + [z for zeros in choice for z in zeros]).real
        taps = taps / taps.sum()
        if taps @ np.arange(len(taps)) <= (len(taps) - 1) / 2:
            found.append(taps)
    return min(found, key=lambda taps: float(np.square(taps - taps[::-1]).sum()))


def octave_filters(moments: int = 2, num_bands: int = 4) -> np.ndarray:
    """Symmetric filters for octave bands, the lowest first: [num_bands, taps] float64. Their sum is a single 1 in the
    centre.

    The autocorrelation L(z) of a symlet's low-pass filter and its counterpart 1 - L(z) split a signal in two. The lower
    part is split again at half the rate, which means L(z^2), then L(z^4) (Karras et al. 2020a, appendix B).
    """
    taps = symlet(moments)
    low = np.convolve(taps, taps[::-1])
    high = _centred_one(len(low)) - low
    bands, below = [], np.ones(1)
    for level in range(num_bands - 1):
        bands.append(np.convolve(below, _dilate(high, 2 ** level)))
        below = np.convolve(below, _dilate(low, 2 ** level))
    bands.append(below)
    return np.stack([np.pad(band, (len(below) - len(band)) // 2) for band in reversed(bands)])


def _centred_one(length: int) -> np.ndarray:
    one = np.zeros(length)
    one[length // 2] = 1
    return one


def _dilate(taps: np.ndarray, factor: int) -> np.ndarray:
    """f(z) -> f(z^factor)."""
    spread = np.zeros((len(taps) - 1) * factor + 1)
    spread[::factor] = taps
    return spread
