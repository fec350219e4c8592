"""The frequencies that each layer of an alias-free generator may hold, and the filters that limit them (Karras et al.
2021, section 3.2 and appendix C).

Frequencies and sampling rates are in cycles and samples per image width. Feature maps are canvases that reach beyond
the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.signal
import scipy.special
import torch
from torch import Tensor


def lowpass_filter(numtaps: int, cutoff: float, width: float, fs: float, radial: bool = False) -> Tensor | None:
    """Kaiser-windowed low-pass filter for the sampling rate `fs`. Its transition band has the width `width` about
    `cutoff` (section 3.2).

    Returns [numtaps], separable. radial: [numtaps, numtaps], equal in all directions (appendix C). None for one tap.
    """
    if numtaps == 1:
        return None
    if not radial:
        return torch.as_tensor(scipy.signal.firwin(numtaps, cutoff, width=width, fs=fs), dtype=torch.float32)
    position = (np.arange(numtaps) - (numtaps - 1) / 2) / fs                # [image widths]; not 0 if taps are even
    radius = np.hypot(position[:, None], position[None, :])
    jinc = scipy.special.j1(2 * np.pi * cutoff * radius) / radius           # the ideal disc, up to a factor
    window = np.kaiser(numtaps, scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(numtaps, width / (fs / 2))))
    f = jinc * np.outer(window, window)
    return torch.as_tensor(f / f.sum(), dtype=torch.float32)


@dataclass(frozen=True)
class Band:
    """The output of a layer."""

    cutoff: float                        # highest frequency that it may hold
    half_width: float                    # of the transition band above
    sampling_rate: int
    size: int                            # of the canvas, in samples
    channels: int


def schedule(img_resolution: int, img_channels: int, channel_base: int, channel_max: int, num_layers: int,
             num_critical: int, first_cutoff: float, first_stopband: float, last_stopband_rel: float,
             margin_size: int) -> list[Band]:
    """The bands of layers 0 .. num_layers, of which the last is ToRGB (section 3.2, figure 4b).

    Cutoff and stopband rise geometrically up to the last `num_critical` layers, which use all frequencies of the image.
    """
    last_cutoff = img_resolution / 2
    last_stopband = last_cutoff * last_stopband_rel
    bands = []
    for layer in range(num_layers + 1):
        progress = min(layer / (num_layers - num_critical), 1)
        cutoff = first_cutoff * (last_cutoff / first_cutoff) ** progress
        stopband = first_stopband * (last_stopband / first_stopband) ** progress
        sampling_rate = 2 ** math.ceil(math.log2(min(stopband * 2, img_resolution)))
        ends = layer >= num_layers - 1
        bands.append(Band(
            cutoff        = cutoff,
            half_width    = max(stopband, sampling_rate / 2) - cutoff,
            sampling_rate = sampling_rate,
            size          = img_resolution if ends else sampling_rate + 2 * margin_size,
            channels      = img_channels if layer == num_layers else round(min(channel_base / 2 / cutoff, channel_max)),
        ))
    return bands
