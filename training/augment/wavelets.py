"""Orthogonal wavelet filters from their definition, and the filter bank that splits an image into octaves."""

from __future__ import annotations

import itertools
import math

import numpy as np


def symlet(moments: int) -> np.ndarray:
    """Low-pass taps of the least asymmetric orthogonal wavelet with so many vanishing moments: [2 * moments] float64, sum 1.

    Daubechies (Ten Lectures on Wavelets, chapters 6 and 8): with y = sin^2(w / 2), the squared magnitude is (1 - y)^M P(y) with
    P(y) = sum_k binom(M - 1 + k, k) y^k. Each root of P gives a pair z, 1/z of zeros of the filter's square, one of which the
    filter gets. Of all choices the most symmetric is taken, and of it and its reversal the one that leans to the left.
    """
    polynomial = [math.comb(moments - 1 + k, k) for k in range(moments)]
    pairs = []
    for y in np.roots(polynomial[::-1]):
        if y.imag >= -1e-9:                             # its conjugate goes along with it
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
    """One-dimensional, symmetric filters for octave bands, the lowest first: [num_bands, taps] float64. They add up to a single 1 in the centre.

    The autocorrelation L(z) of a symlet's low-pass filter and its counterpart 1 - L(z) part a signal in two; the lower part is parted again
    at half the rate, that is, with L(z^2), then L(z^4) (Karras et al. 2020a, appendix B).
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
