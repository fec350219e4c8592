"""Perceptual path length (Karras et al. 2019, StyleGAN) in its form of StyleGAN3: in W, at the ends of paths, of whole images."""

from __future__ import annotations

import copy

import numpy as np
import torch

from metrics.metric_main import register_metric
from metrics.options import MetricOptions
from metrics.samples import Batch, count_broken, each_on_one_thread, gather_rows, iterate_samples, rng

EPSILON = 1e-4                           # step along the path
MAX_SIZE = 256                           # larger images are reduced to this before they are compared


def trimmed_mean(distances: np.ndarray) -> float:
    """Mean of what lies between the 1st and the 99th percentile, these included. nan where a distance is."""
    if np.isnan(distances).any():
        return float("nan")
    low, high = np.percentile(distances, 1, method="lower"), np.percentile(distances, 99, method="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())


def reduce_image(images: torch.Tensor, size: int = MAX_SIZE) -> torch.Tensor:
    """[N, C, H, W] -> at most `size` pixels per side, by means of squares of pixels."""
    factor = images.shape[2] // size
    return torch.nn.functional.avg_pool2d(images, factor) if factor > 1 else images


class PathLength:
    """Squared perceptual distance, over the squared step, between the two ends of a small step in W."""

    def __init__(self, opts: MetricOptions):
        self.opts = opts
        self.G = copy.deepcopy(opts.G)               # its noise is to be changed
        self.noise = [buffer for name, buffer in self.G.named_buffers() if name.endswith(".noise_const")]
        self.detector = opts.detector("vgg16", "lpips")

    def __call__(self, batch: Batch) -> torch.Tensor:
        """float64 [B]."""
        torch.manual_seed(batch.noise_seed)
        for buffer in self.noise:                    # another one each time, the same at both ends
            buffer.copy_(torch.randn_like(buffer))
        other = np.stack([rng(self.opts.seed, "path end", int(i)).standard_normal(self.G.z_dim, dtype=np.float32) for i in batch.index])
        starts, ends = batch.z, torch.from_numpy(other).to(batch.z)
        if self.opts.device.type != "cpu":
            return self.distances(starts, ends, batch.c)
        paths = [(starts[i : i + 1], ends[i : i + 1], batch.c[i : i + 1]) for i in range(len(starts))]
        return torch.cat(each_on_one_thread(self.distances, paths))         # over EPSILON ** 2, the rounding of shared work would be seen

    def distances(self, starts: torch.Tensor, ends: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Latents of both ends [B, z_dim], one camera or class [B, c_dim] along the path -> float64 [B]."""
        mapping_kwargs, synthesis_kwargs = self.opts.split_kwargs(noise_mode="const", force_fp32=True)
        c = torch.cat([c, c])
        start, end = self.G.mapping(torch.cat([starts, ends]), c, **mapping_kwargs).chunk(2)
        images = count_broken(self.opts, self.G.synthesis(torch.cat([start, start.lerp(end, EPSILON)]), c, **synthesis_kwargs))
        features = self.detector(reduce_image((images + 1) * (255 / 2)), "lpips").double()
        first, second = features.chunk(2)
        return (first - second).square().sum(dim=1) / EPSILON ** 2


@register_metric(name="ppl2_wend{count}", samples=50000, count_optional=True, detectors=(("vgg16", "lpips"),), needs=("generator",), reals=False)
def ppl2_wend(opts: MetricOptions) -> dict:
    path_length = PathLength(opts)
    distances, index = [], []
    with opts.bar(opts.num_samples, "paths") as bar:
        for batch in iterate_samples(opts, opts.num_samples):
            distances.append(path_length(batch))
            index.append(batch.index)
            bar.update(len(batch.index) * opts.num_gpus)
    return {opts.metric: trimmed_mean(gather_rows(opts, distances, index, opts.num_samples))}
