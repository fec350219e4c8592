"""Perceptual path length (Karras et al. 2019, StyleGAN), as in StyleGAN3: in W, at path ends, of whole images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric_utils import Batch, MetricOptions, count_broken, gather_rows, iterate_samples, rng

EPSILON = 1e-4                           # step along the path
MAX_SIZE = 256                           # larger images are reduced to this before they are compared


def trimmed_mean(distances: np.ndarray) -> float:
    """Mean of the distances from the 1st to the 99th percentile. nan if a distance is nan."""
    if np.isnan(distances).any():
        return float("nan")
    low, high = np.percentile(distances, 1, method="lower"), np.percentile(distances, 99, method="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())


def reduce_image(images: Tensor, size: int = MAX_SIZE) -> Tensor:
    """Reduces images [N, C, H, W] to about `size` pixels per side by a whole factor: means of squares of pixels."""
    factor = images.shape[2] // size
    return torch.nn.functional.avg_pool2d(images, factor) if factor > 1 else images


class PathLength:
    """Squared perceptual distance, over the squared step, between the two ends of a small step in W."""

    def __init__(self, opts: MetricOptions):
        self.opts = opts
        self.G = copy.deepcopy(opts.G)               # its noise buffers will change
        self.noise = [buffer for name, buffer in self.G.named_buffers() if name.endswith(".noise_const")]
        self.detector = opts.detector("vgg16", "lpips")

    def __call__(self, batch: Batch) -> Tensor:
        """Distances of the batch's paths, float64 [B]."""
        torch.manual_seed(batch.noise_seed)
        for buffer in self.noise:                    # new noise for each pass, the same at both ends
            buffer.copy_(torch.randn_like(buffer))
        other = np.stack([rng(self.opts.seed, "path end", int(i)).standard_normal(self.G.z_dim, dtype=np.float32)
                          for i in batch.index])
        starts, ends = batch.z, torch.from_numpy(other).to(batch.z)
        if self.opts.device.type != "cpu":
            return self.distances(starts, ends, batch.c)
        paths = [(starts[i : i + 1], ends[i : i + 1], batch.c[i : i + 1]) for i in range(len(starts))]
        return torch.cat(each_on_one_thread(self.distances, paths))         # division by EPSILON ** 2 enlarges rounding

    def distances(self, starts: Tensor, ends: Tensor, c: Tensor) -> Tensor:
        """Latents of both ends [B, z_dim] and the label along the path [B, c_dim] -> float64 [B]."""
        mapping_kwargs, synthesis_kwargs = self.opts.split_kwargs(noise_mode="const", force_fp32=True)
        c = torch.cat([c, c])
        start, end = self.G.mapping(torch.cat([starts, ends]), c, **mapping_kwargs).chunk(2)
        ws = torch.cat([start, start.lerp(end, EPSILON)])
        images = count_broken(self.opts, self.G.synthesis(ws, c, **synthesis_kwargs))
        features = self.detector(reduce_image((images + 1) * (255 / 2)), "lpips").double()
        first, second = features.chunk(2)
        return (first - second).square().sum(dim=1) / EPSILON ** 2


def each_on_one_thread(function: Callable[..., Any], calls: Sequence[tuple]) -> list:
    """[function(*call), ...] without gradients, several at a time, each on one CPU thread.

    So the results do not depend on the number of threads; a product that threads share would be rounded differently.
    """
    threads = torch.get_num_threads()

    def work(call: tuple) -> Any:
        torch.set_num_threads(1)                 # of this worker; the main thread keeps its own
        with torch.no_grad():
            return function(*call)

    try:
        with ThreadPoolExecutor(min(threads, len(calls))) as pool:
            return list(pool.map(work, calls))
    finally:
        torch.set_num_threads(threads)           # for threads that start later


def ppl2_wend(opts: MetricOptions) -> dict:
    path_length = PathLength(opts)
    distances, index = [], []
    with opts.bar(opts.num_samples, "paths") as bar:
        for batch in iterate_samples(opts, opts.num_samples):
            distances.append(path_length(batch))
            index.append(batch.index)
            bar.update(len(batch.index) * opts.num_gpus)
    return {opts.metric: trimmed_mean(gather_rows(opts, distances, index, opts.num_samples))}
