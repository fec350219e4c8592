"""How far a generator is from its own convolutions: time of a forward pass / time of the bare convolutions of its shapes.

Each convolution counts with the better memory format; a stride-2 transposed convolution as the better of
conv_transpose2d and four sub-pixel convolutions. Both sides are measured in turns in this one run.

    python benchmarks/bench_generator.py                        # raycond2, 512 px, batch 1, CPU
    python benchmarks/bench_generator.py --resolution=128 --threads=2 --csv=benchmarks/generator.csv
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F

from camera_utils.datasets import camera_for
from training.networks_raycond2 import Generator
from training.networks_stylegan2 import SynthesisLayer, ToRGBLayer

FORMATS = (torch.contiguous_format, torch.channels_last)


def timed(function: Callable, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def best_of(candidates: list[Callable], device: torch.device, repeats: int) -> float:
    """The smallest median among the candidates, each warmed up, measured in turns."""
    for candidate in candidates:
        candidate()
    times = [[timed(candidate, device) for candidate in candidates] for _ in range(repeats)]
    return min(statistics.median(column) for column in zip(*times))


def plain_convolutions(shape: tuple, weight_shape: tuple, device: torch.device, dtype: torch.dtype) -> list[Callable]:
    """Stride 1, in both memory formats."""
    pad = weight_shape[-1] // 2
    pairs = [[torch.randn(s, device=device, dtype=dtype).to(memory_format=fmt) for s in (shape, weight_shape)] for fmt in FORMATS]
    return [lambda x=x, w=w: F.conv2d(x, w, padding=pad) for x, w in pairs]


def upsampling_convolutions(shape: tuple, weight_shape: tuple, device: torch.device, dtype: torch.dtype) -> list[Callable]:
    """Stride-2 transposed convolution, and its four phases: 2x2, 2x1, 1x2 and 1x1 taps of a 3x3 kernel."""
    O, I, k, _ = weight_shape
    candidates = []
    for fmt in FORMATS:
        x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=fmt)
        w = torch.randn([I, O, k, k], device=device, dtype=dtype).to(memory_format=fmt)
        taps = [(k + 1) // 2, k // 2]
        phases = [torch.randn([O, I, a, b], device=device, dtype=dtype).to(memory_format=fmt) for a in taps for b in taps]
        candidates.append(lambda x=x, w=w: F.conv_transpose2d(x, w, stride=2))
        candidates.append(lambda x=x, phases=phases: [F.conv2d(x, p, padding=[n - 1 for n in p.shape[2:]]) for p in phases])
    return candidates


def bare_convolutions(G: Generator, batch: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Seconds that the convolutions of one forward pass take by themselves."""
    total = 0.0
    for layer in G.synthesis.modules():
        if not isinstance(layer, (SynthesisLayer, ToRGBLayer)):
            continue
        up = getattr(layer, "up", 1)
        size = layer.resolution // up if isinstance(layer, SynthesisLayer) else layer.bench_resolution
        make = upsampling_convolutions if up == 2 else plain_convolutions
        total += best_of(make((batch, layer.in_channels, size, size), tuple(layer.weight.shape), device, dtype), device, repeats)
    return total


@click.command()
@click.option("--resolution", default=512, show_default=True)
@click.option("--cbase", default=32768, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--rays", default="pinhole", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--repeats", default=5, show_default=True)
@click.option("--csv", "csv_path", help="Append the result to this file", metavar="FILE")
@torch.no_grad()
def main(resolution: int, cbase: int, batch: int, rays: str, device: str, threads: int, repeats: int, csv_path: str | None) -> None:
    """Print seconds of generator and bare convolutions, the ratio last."""
    torch.set_num_threads(threads)
    device = torch.device(device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    G = Generator(512, 25, 512, resolution, 3, channel_base=cbase, rays=rays).eval().requires_grad_(False).to(device)
    for res in G.synthesis.block_resolutions:
        getattr(G.synthesis, f"b{res}").torgb.bench_resolution = res
    ws = G.mapping(torch.randn(batch, 512, device=device), None)
    c = camera_for("ffhq", yaw=0.3, pitch=0.1).to_label().to(device).expand(batch, -1)

    def forward() -> torch.Tensor:
        return G.synthesis(ws, c, noise_mode="const")

    forward()
    whole, bare = [], []
    for _ in range(3):                                      # in turns: other load on the machine meets both sides
        whole.append(statistics.median(timed(forward, device) for _ in range(repeats)))
        bare.append(bare_convolutions(G, batch, device, dtype, repeats))
    ratios = [a / b for a, b in zip(whole, bare)]
    row = dict(network="raycond2", resolution=resolution, cbase=cbase, batch=batch, device=str(device), cpu=platform.processor() or platform.machine(),
               threads=threads, torch=torch.__version__, generator_s=round(statistics.median(whole), 4), convolutions_s=round(statistics.median(bare), 4),
               ratio=round(statistics.median(ratios), 3))
    if csv_path:
        fresh = not os.path.exists(csv_path)
        with open(csv_path, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
    print(f"raycond2 {resolution} px, cbase {cbase}, batch {batch}, {device}, {threads} threads, torch {torch.__version__}")
    print(f"generator         {row['generator_s']:.3f} s")
    print(f"bare convolutions {row['convolutions_s']:.3f} s")
    print(f"ratio             {row['ratio']:.2f}  (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
