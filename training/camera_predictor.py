"""A network that tells the camera of an image. It learns from real images; G is rewarded for the camera asked for.

Auxiliary tasks of D go back to Odena et al. 2017 (AC-GAN). Here the task is a regression with a network of its own,
which sees no rays: they would give the answer away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from torch_utils import misc
from torch_utils.ops import conv2d_gradfix
from training.layers import FullyConnectedLayer, computing_dtype

FINAL_SIZE = 4                           # pixels per side where the convolutions end
GROUP = 16                               # channels that are normalised together
SLOPE = 0.2                              # of the leaky ReLU
LR_MULTIPLIER = 3                        # faster than D's layers: G learns no camera before it can tell one
MIN_SPREAD = 1e-4                        # standard deviation below which a number of the label counts as constant


class CameraPredictor(nn.Module):
    """Images -> standardised camera labels.

    Learning rates are equalised; groups of channels are normalised for each sample by itself (Wu and He 2018), so that
    the result does not depend on the rest of the batch.
    """

    def __init__(self,
        c_dim:          int,            # Numbers in a label.
        img_channels:   int,
        resolution:     int,            # Of the images; a power of two.
        max_resolution: int = 32,       # Larger ones are reduced to this: poses need no details.
        base_channels:  int = 16,       # At the full size; twice as many at each halving ...
        max_channels:   int = 96,       # ... but at most so many.
        features:       int = 128,      # Before the last layer.
    ):
        super().__init__()
        self.size = min(resolution, max_resolution)
        sizes = [self.size >> i for i in range(int(math.log2(self.size // FINAL_SIZE)) + 1)]
        channels = [min(base_channels << i, max_channels) for i in range(len(sizes))]
        self.layers = nn.ModuleList([_Layer(img_channels, channels[0], stride=1)])
        for before, after, size in zip(channels, channels[1:], sizes[1:]):
            self.layers.append(_Layer(before, after, stride=2))
            if size <= 16:
                self.layers.append(_Layer(after, after, stride=1))
        self.fc = FullyConnectedLayer(channels[-1] * FINAL_SIZE ** 2, features, activation="lrelu",
                                      lr_multiplier=LR_MULTIPLIER)
        self.out = FullyConnectedLayer(features, c_dim, lr_multiplier=LR_MULTIPLIER, weight_init=0.1)
        self.register_buffer("label_mean", torch.zeros([c_dim], dtype=torch.float32))
        self.register_buffer("label_scale", torch.ones([c_dim], dtype=torch.float32))     # 1 / deviation; 0: constant

    @torch.no_grad()
    def fit_labels(self, labels: Iterable[np.ndarray]) -> None:
        """Learns what to standardise with from the labels [c_dim] of the data set."""
        table = np.stack(list(labels)).astype(np.float64)
        spread = table.std(axis=0)
        self.label_mean.copy_(torch.from_numpy(table.mean(axis=0)))
        self.label_scale.copy_(torch.from_numpy(np.where(spread > MIN_SPREAD, 1 / np.maximum(spread, MIN_SPREAD), 0)))

    @misc.own_precision
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """img: [N, C, H, W]. Returns (label - mean) / deviation, [N, c_dim]; numbers for constants mean nothing."""
        x = img.to(computing_dtype(self.out.weight))
        if x.shape[2] > self.size:
            x = nn.functional.avg_pool2d(x, x.shape[2] // self.size)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.fc(x.flatten(1)))

    def error(self, img: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the standardised label, [N]; 1 for a predictor that always says the mean."""
        off = self(img) - (c - self.label_mean) * self.label_scale
        varies = self.label_scale > 0
        return (off.square() * varies).sum(dim=1) / varies.sum().clamp(min=1)


class _Layer(nn.Module):
    """A 3x3 convolution, normalised, and leaky ReLU; on top of its input where that has the same shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.residual = stride == 1 and in_channels == out_channels
        self.weight = nn.Parameter(torch.randn([out_channels, in_channels, 3, 3], dtype=torch.float32) / LR_MULTIPLIER)
        self.weight_gain = LR_MULTIPLIER / math.sqrt(in_channels * 9)
        self.norm_weight = nn.Parameter(torch.ones([out_channels], dtype=torch.float32))
        self.norm_bias = nn.Parameter(torch.zeros([out_channels], dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = conv2d_gradfix.conv2d(x, self.weight.to(x.dtype) * self.weight_gain, stride=self.stride, padding=1)
        groups = max(y.shape[1] // GROUP, 1)
        y = nn.functional.group_norm(y, groups, self.norm_weight.to(x.dtype), self.norm_bias.to(x.dtype))
        y = nn.functional.leaky_relu(y, SLOPE)
        return (x + y) * math.sqrt(0.5) if self.residual else y
