"""How far a generator is from its own convolutions: time of a forward pass / time of the bare convolutions of its shapes.

Each convolution counts with the better memory format; a stride-2 transposed convolution as the better of
conv_transpose2d and four sub-pixel convolutions. Both sides are measured in turns in this one run.

    python benchmarks/bench_generator.py                        # raycond2, 512 px, batch 1, CPU
    python benchmarks/bench_generator.py --resolution=128 --threads=2 --csv=benchmarks/generator.csv
    python benchmarks/bench_generator.py --cfg=raycond3-t --resolution=64
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import click
import torch
import torch.nn.functional as F
from results import save_rows

from camera_utils.datasets import camera_for
from dnnlib.util import construct_class_by_name
from training import networks_stylegan2, networks_stylegan3
from training.presets import PRESETS

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


class Convolution(NamedTuple):
    """One of a generator's convolutions; `up`: a transposed one of stride 2."""

    input: tuple[int, int, int, int]        # [N, I, H, W]
    weight: tuple[int, int, int, int]       # [O, I, k, k]
    padding: int
    up: bool = False


def convolutions_of(G: torch.nn.Module, batch: int) -> Iterator[Convolution]:
    for layer in G.synthesis.modules():
        if isinstance(layer, networks_stylegan3.SynthesisLayer):
            size = int(layer.in_size[1]), int(layer.in_size[0])
            yield Convolution((batch, layer.in_channels, *size), tuple(layer.weight.shape), layer.conv_kernel - 1)
        elif isinstance(layer, (networks_stylegan2.SynthesisLayer, networks_stylegan2.ToRGBLayer)):
            up = getattr(layer, "up", 1)
            size = layer.resolution // up if isinstance(layer, networks_stylegan2.SynthesisLayer) else layer.bench_resolution
            yield Convolution((batch, layer.in_channels, size, size), tuple(layer.weight.shape), layer.weight.shape[-1] // 2, up == 2)


def plain_convolutions(conv: Convolution, device: torch.device, dtype: torch.dtype) -> list[Callable]:
    """Stride 1, in both memory formats."""
    pairs = [[torch.randn(s, device=device, dtype=dtype).to(memory_format=fmt) for s in (conv.input, conv.weight)] for fmt in FORMATS]
    return [lambda x=x, w=w: F.conv2d(x, w, padding=conv.padding) for x, w in pairs]


def upsampling_convolutions(conv: Convolution, device: torch.device, dtype: torch.dtype) -> list[Callable]:
    """Stride-2 transposed convolution, and its four phases: 2x2, 2x1, 1x2 and 1x1 taps of a 3x3 kernel."""
    O, I, k, _ = conv.weight
    candidates = []
    for fmt in FORMATS:
        x = torch.randn(conv.input, device=device, dtype=dtype).to(memory_format=fmt)
        w = torch.randn([I, O, k, k], device=device, dtype=dtype).to(memory_format=fmt)
        taps = [(k + 1) // 2, k // 2]
        phases = [torch.randn([O, I, a, b], device=device, dtype=dtype).to(memory_format=fmt) for a in taps for b in taps]
        candidates.append(lambda x=x, w=w: F.conv_transpose2d(x, w, stride=2))
        candidates.append(lambda x=x, phases=phases: [F.conv2d(x, p, padding=[n - 1 for n in p.shape[2:]]) for p in phases])
    return candidates


def bare_convolutions(G: torch.nn.Module, batch: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Seconds that the convolutions of one forward pass take by themselves; equal ones are measured once."""
    counts = collections.Counter(convolutions_of(G, batch))
    return sum(count * best_of((upsampling_convolutions if conv.up else plain_convolutions)(conv, device, dtype), device, repeats)
               for conv, count in counts.items())


def build(cfg: str, resolution: int, cbase: int, rays: str, device: torch.device) -> torch.nn.Module:
    """An untrained generator of a preset."""
    preset = PRESETS[cfg]
    G = construct_class_by_name(512, 25, 512, resolution, 3, class_name=preset.generator, channel_base=cbase * preset.G_width,
                                channel_max=preset.cmax * preset.G_width, rays=rays, **dict(preset.synthesis_kwargs))
    for res in getattr(G.synthesis, "block_resolutions", []):
        getattr(G.synthesis, f"b{res}").torgb.bench_resolution = res
    return G.eval().requires_grad_(False).to(device)


@click.command()
@click.option("--cfg", type=click.Choice([name for name, row in PRESETS.items() if row.rays and row.z_dim == 512]), default="raycond2", show_default=True)
@click.option("--resolution", default=512, show_default=True)
@click.option("--cbase", default=32768, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--rays", default="pinhole", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--repeats", default=5, show_default=True)
@click.option("--csv", "csv_path", help="Append the result to this file", metavar="FILE")
@torch.no_grad()
def main(cfg: str, resolution: int, cbase: int, batch: int, rays: str, device: str, threads: int, repeats: int, csv_path: str | None) -> None:
    """Print seconds of generator and bare convolutions, the ratio last."""
    torch.set_num_threads(threads)
    device = torch.device(device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    G = build(cfg, resolution, cbase, rays, device)
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
    row = dict(network=cfg, resolution=resolution, cbase=cbase, batch=batch, device=str(device),
               threads=threads, generator_s=round(statistics.median(whole), 4), convolutions_s=round(statistics.median(bare), 4),
               ratio=round(statistics.median(ratios), 3))
    if csv_path:
        save_rows(csv_path, [row])
    print(f"{cfg} {resolution} px, cbase {cbase}, batch {batch}, {device}, {threads} threads, torch {torch.__version__}")
    print(f"generator         {row['generator_s']:.3f} s")
    print(f"bare convolutions {row['convolutions_s']:.3f} s")
    print(f"ratio             {row['ratio']:.2f}  (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
