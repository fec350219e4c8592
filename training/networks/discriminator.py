"""StyleGAN2 discriminator (Karras et al. 2020b) with projection on the label (Miyato and Koyama 2018).

`dcond` chooses how it learns the camera: 'pose' by projection, 'rays' from a ray map appended to its image, 'both' in
both ways. With `predicts_camera` it also has a network that tells the camera of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_utils import misc, persistence
from torch_utils.ops import conv2d_gradfix, conv2d_resample, upfirdn2d
from training.networks.generator import MappingNetwork
from training.networks.layers import (
    BILINEAR,
    HALF_DTYPES,
    Conv2dLayer,
    FullyConnectedLayer,
    channels_per_resolution,
    computing_dtype,
    half_precision_resolutions,
    sqrt_half,
)
from training.networks.ray_conditioning import make_conditioning

# dcond -> (the label is projected on, the image carries rays)
CAMERA_INPUTS = {"pose": (True, False), "rays": (False, True), "both": (True, True)}


@persistence.persistent_class
class DiscriminatorBlock(misc.KeepsFilters):
    """One resolution: two convolutions, of which the second downsamples, and, in some architectures, a branch from the
    image.
    """

    def __init__(self,
        in_channels:        int,                        # 0: the first block, which reads the image.
        tmp_channels:       int,
        out_channels:       int,
        resolution:         int,                        # Of the input.
        img_channels:       int,
        first_layer_idx:    int,                        # Layers before this block, counted for `freeze_layers`.
        architecture:       str             = "resnet",     # 'orig', 'skip' or 'resnet'.
        activation:         str             = "lrelu",
        resample_filter:    Sequence[int]   = BILINEAR,
        conv_clamp:         float | None    = None,
        use_fp16:           bool            = False,
        fp16_channels_last: bool            = False,
        half_dtype:         str             = "fp16",   # 'fp16' or 'bf16'.
        freeze_layers:      int             = 0,        # Layers of the whole network that do not train.
    ):
        assert architecture in ("orig", "skip", "resnet"), architecture
        super().__init__()
        self.in_channels = in_channels
        self.resolution = resolution
        self.img_channels = img_channels
        self.first_layer_idx = first_layer_idx
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.half_dtype = half_dtype
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        self.num_layers = 0

        def conv(n_in: int, n_out: int, kernel_size: int, **kwargs: Any) -> Conv2dLayer:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            self.num_layers += 1
            return Conv2dLayer(n_in, n_out, kernel_size, trainable=trainable, channels_last=self.channels_last,
                               **kwargs)

        self.reads_image = in_channels == 0 or architecture == "skip"
        if self.reads_image:
            self.fromrgb = conv(img_channels, tmp_channels, 1, activation=activation, conv_clamp=conv_clamp)
        self.conv0 = conv(tmp_channels, tmp_channels, 3, activation=activation, conv_clamp=conv_clamp)
        self.conv1 = conv(tmp_channels, out_channels, 3, activation=activation, conv_clamp=conv_clamp, down=2,
                          resample_filter=resample_filter)
        if architecture == "resnet":
            self.skip = conv(tmp_channels, out_channels, 1, bias=False, down=2, resample_filter=resample_filter)

    @misc.own_precision
    def forward(self, x: Tensor | None, img: Tensor | None, force_fp32: bool = False) -> tuple[Tensor, Tensor | None]:
        """x: [N, in_channels, H, W], img: [N, img_channels, H, W]. Returns features at half the size, and the image for
        the next block.
        """
        device = (img if x is None else x).device
        dtype = computing_dtype(self.conv0.weight)
        half = self.use_fp16 and not force_fp32 and device.type == "cuda" and dtype == torch.float32
        channels_last = conv2d_resample.prefers_channels_last(device) or (self.channels_last and not force_fp32)
        numerics = dict(dtype=HALF_DTYPES[self.half_dtype] if half else dtype,
                        memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        parts = []
        if x is not None:
            misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
            parts.append(x.to(**numerics))
        if self.reads_image:
            misc.assert_shape(img, [None, self.img_channels, self.resolution, self.resolution])
            img = img.to(**numerics)
            parts.append(self.fromrgb(img))
        x = sum(parts[1:], start=parts[0])
        img = upfirdn2d.downsample2d(img, self.resample_filter) if self.architecture == "skip" else None

        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), img
        shortcut = self.skip(x, gain=sqrt_half())
        return shortcut.add_(self.conv1(self.conv0(x), gain=sqrt_half())), img

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class MinibatchStdLayer(nn.Module):
    """Appends the standard deviation within groups of samples (Karras et al. 2018, section 3). Sample i is in group
    i mod (N / group_size).
    """

    def __init__(self, group_size: int | None, num_channels: int = 1):
        super().__init__()
        self.group_size = group_size     # None: the whole batch
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + num_channels, H, W]."""
        N, C, H, W = x.shape
        size = max(N if self.group_size is None else min(self.group_size, N), 1)
        assert N % size == 0, f"a batch of {N} does not divide into groups of {size}"
        groups = x.reshape(size, N // size, self.num_channels, C // self.num_channels, H, W)
        spread = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt()          # [groups, F, C/F, H, W]
        spread = spread.mean(dim=[2, 3, 4])                                 # [groups, F]
        spread = spread.repeat(size, 1)[:, :, None, None].expand(-1, -1, H, W)
        return torch.cat([x, spread], dim=1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


@persistence.persistent_class
class DiscriminatorEpilogue(nn.Module):
    """4x4 features -> logit, or -> projection on the mapped label."""

    def __init__(self,
        in_channels:        int,
        cmap_dim:           int,                        # Size of the mapped label; 0: none.
        resolution:         int,
        img_channels:       int,
        architecture:       str             = "resnet",
        mbstd_group_size:   int | None      = 4,        # None: the whole batch.
        mbstd_num_channels: int             = 1,        # 0: no such layer.
        activation:         str             = "lrelu",
        conv_clamp:         float | None    = None,
    ):
        assert architecture in ("orig", "skip", "resnet"), architecture
        super().__init__()
        self.in_channels = in_channels
        self.cmap_dim = cmap_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.architecture = architecture
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, 1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(in_channels + mbstd_num_channels, in_channels, 3, activation=activation,
                                conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(in_channels * resolution ** 2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim if cmap_dim > 0 else 1)

    @misc.own_precision
    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None, force_fp32: bool = False) -> Tensor:
        """x: [N, in_channels, 4, 4], cmap: [N, cmap_dim]. Returns logits [N, 1]. Never computes in half precision."""
        misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
        dtype = computing_dtype(self.out.weight)
        x = x.to(dtype, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            x = x + self.fromrgb(img.to(dtype, memory_format=torch.contiguous_format))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))                      # [N, cmap_dim or 1]
        if self.cmap_dim > 0:
            misc.assert_shape(cmap, [None, self.cmap_dim])
            x = (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)
        return x

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class Discriminator(nn.Module):
    """Image and label -> logit."""

    def __init__(self,
        c_dim:              int,                        # 0: no label.
        img_resolution:     int,
        img_channels:       int,
        architecture:       str             = "resnet",
        channel_base:       int             = 32768,
        channel_max:        int             = 512,
        num_fp16_res:       int             = 4,
        conv_clamp:         float | None    = 256,
        cmap_dim:           int | None      = None,     # Size of the mapped label; None: the channels at 4x4.
        block_kwargs:       dict | None     = None,     # For DiscriminatorBlock.
        mapping_kwargs:     dict | None     = None,     # For MappingNetwork.
        epilogue_kwargs:    dict | None     = None,     # For DiscriminatorEpilogue.
        dcond:              str             = "pose",   # A key of CAMERA_INPUTS.
        rays:               str             = "published",  # Ray convention, where the image carries rays.
        predicts_camera:    bool            = False,    # Add a CameraPredictor, for the camera loss?
    ):
        super().__init__()
        assert dcond in CAMERA_INPUTS, f"dcond {dcond!r}, expected one of {list(CAMERA_INPUTS)}"
        projects, sees_rays = CAMERA_INPUTS[dcond]
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.conditioning = make_conditioning(rays if sees_rays else None)
        channels = channels_per_resolution(img_resolution, channel_base, channel_max)
        half = half_precision_resolutions(img_resolution, num_fp16_res)
        self.block_resolutions = [res for res in sorted(channels, reverse=True) if res > 4]
        if c_dim == 0 or not projects:
            cmap_dim = 0
        elif cmap_dim is None:
            cmap_dim = channels[4]

        image = dict(img_channels=img_channels + self.conditioning.num_channels, architecture=architecture,
                     conv_clamp=conv_clamp)
        first_layer_idx = 0
        for res in self.block_resolutions:
            block = DiscriminatorBlock(channels[res] if res < img_resolution else 0, channels[res], channels[res // 2],
                                       resolution=res, first_layer_idx=first_layer_idx, use_fp16=res in half, **image,
                                       **(block_kwargs or {}))
            first_layer_idx += block.num_layers
            setattr(self, f"b{res}", block)
        if cmap_dim > 0:
            self.mapping = MappingNetwork(z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None,
                                          **(mapping_kwargs or {}))
        self.cmap_dim = cmap_dim
        self.b4 = DiscriminatorEpilogue(channels[4], cmap_dim=cmap_dim, resolution=4, **image,
                                        **(epilogue_kwargs or {}))
        self.camera_predictor = CameraPredictor(c_dim, img_channels, img_resolution) if predicts_camera else None

    @misc.own_precision
    def forward(self, img: Tensor, c: Tensor | None, update_emas: bool = False, **block_kwargs: Any) -> Tensor:
        """img: [N, img_channels, H, W], c: [N, c_dim]; one image serves many labels, and one label many images.

        Returns logits [N, 1]. `update_emas` has no effect; other discriminators use it.
        """
        rays = self.conditioning.bind(c, img.shape[0])
        img = rays.append_to(rays.expand(img.to(computing_dtype(img))))
        x = None
        for res in self.block_resolutions:
            x, img = getattr(self, f"b{res}")(x, img, **block_kwargs)
        cmap = self.mapping(None, c) if self.cmap_dim > 0 else None
        return self.b4(x, img, cmap)

    def extra_repr(self) -> str:
        return f"c_dim={self.c_dim}, img_resolution={self.img_resolution}, img_channels={self.img_channels}"


# ---------------------------------------------------------------------------------------------------------------------
# The network that tells the camera of an image. It learns from real images; G is rewarded for the camera asked for.
#
# D has had auxiliary tasks since Odena et al. 2017 (AC-GAN). This one is a regression, with a network of its own that
# sees no rays, since they would give the answer away.

FINAL_SIZE = 4                           # pixels per side where the convolutions end
GROUP = 16                               # channels that are normalised together
SLOPE = 0.2                              # of the leaky ReLU
LR_MULTIPLIER = 3                        # learns faster than D, since G learns cameras only from what it can tell
MIN_SPREAD = 1e-4                        # a number of the label with less standard deviation counts as constant


class CameraPredictor(nn.Module):
    """Images -> standardised camera labels.

    Learning rates are equalised. Groups of channels are normalised per sample (Wu and He 2018), so the result does not
    depend on the rest of the batch.
    """

    def __init__(self,
        c_dim:          int,            # Numbers in a label.
        img_channels:   int,
        resolution:     int,            # Of the images; a power of two.
        max_resolution: int = 32,       # Larger images are reduced to this, as poses need no details.
        base_channels:  int = 16,       # At the full size; doubled when the size is halved ...
        max_channels:   int = 96,       # ... up to this.
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
        """Takes mean and deviation from the labels [c_dim] of the data set."""
        table = np.stack(list(labels)).astype(np.float64)
        spread = table.std(axis=0)
        self.label_mean.copy_(torch.from_numpy(table.mean(axis=0)))
        self.label_scale.copy_(torch.from_numpy(np.where(spread > MIN_SPREAD, 1 / np.maximum(spread, MIN_SPREAD), 0)))

    @misc.own_precision
    def forward(self, img: Tensor) -> Tensor:
        """img: [N, C, H, W]. Returns (label - mean) / deviation, [N, c_dim]; values of constants mean nothing."""
        x = img.to(computing_dtype(self.out.weight))
        if x.shape[2] > self.size:
            x = nn.functional.avg_pool2d(x, x.shape[2] // self.size)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.fc(x.flatten(1)))

    def error(self, img: Tensor, c: Tensor) -> Tensor:
        """Mean squared error of the standardised label, [N]. A constant guess of the mean has 1 on average."""
        off = self(img) - (c - self.label_mean) * self.label_scale
        varies = self.label_scale > 0
        return (off.square() * varies).sum(dim=1) / varies.sum().clamp(min=1)


class _Layer(nn.Module):
    """A 3x3 convolution, group normalisation and leaky ReLU, added to the input if that has the same shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.residual = stride == 1 and in_channels == out_channels
        self.weight = nn.Parameter(torch.randn([out_channels, in_channels, 3, 3], dtype=torch.float32) / LR_MULTIPLIER)
        self.weight_gain = LR_MULTIPLIER / math.sqrt(in_channels * 9)
        self.norm_weight = nn.Parameter(torch.ones([out_channels], dtype=torch.float32))
        self.norm_bias = nn.Parameter(torch.zeros([out_channels], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        y = conv2d_gradfix.conv2d(x, self.weight.to(x.dtype) * self.weight_gain, stride=self.stride, padding=1)
        groups = max(y.shape[1] // GROUP, 1)
        y = nn.functional.group_norm(y, groups, self.norm_weight.to(x.dtype), self.norm_bias.to(x.dtype))
        y = nn.functional.leaky_relu(y, SLOPE)
        return (x + y) * math.sqrt(0.5) if self.residual else y
