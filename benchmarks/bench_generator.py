"""How far a generator is from its own convolutions: time of a forward pass / time of the bare convolutions of its shapes.

Each convolution counts with the fastest way to compute it (convolutions.py): both memory formats, and for a stride-2 transposed
one also four sub-pixel convolutions. Both sides are measured in turns in this one run: other work on the machine meets both, and
what counts is the median of the rounds' ratios.

    python benchmarks/bench_generator.py                        # raycond2, 512 px, batch 1, CPU
    python benchmarks/bench_generator.py --resolution=128 --threads=2 --csv=benchmarks/generator.csv
    python benchmarks/bench_generator.py --cfg=raycond3-t --resolution=64
"""

from __future__ import annotations

import collections
import os
import statistics
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from convolutions import BareConvolutions, Convolution, transposed
from results import save_rows
from timing import device_name, examples, in_turns, prepare, timed

from camera_utils.datasets import camera_for
from dnnlib.util import construct_class_by_name
from training import networks_stylegan2, networks_stylegan3
from training.presets import PRESETS

CFGS = [name for name, row in PRESETS.items() if row.rays and row.z_dim == 512]


def convolutions_of(G: torch.nn.Module, batch: int, device: torch.device) -> Iterator[Convolution]:
    """Those of a forward pass, by the shapes of the layers, however the layers compute them."""
    for name, layer in G.synthesis.named_modules():
        if isinstance(layer, networks_stylegan3.SynthesisLayer):
            size = int(layer.in_size[1]), int(layer.in_size[0])
            yield Convolution("y", (batch, layer.in_channels, *size), tuple(layer.weight.shape), 1, (layer.conv_kernel - 1,) * 2, _dtype(layer, device))
        elif isinstance(layer, (networks_stylegan2.SynthesisLayer, networks_stylegan2.ToRGBLayer)):
            block = G.synthesis.get_submodule(name.rpartition(".")[0])
            up = getattr(layer, "up", 1)
            size, kernel = block.resolution // up, layer.weight.shape[-1]
            x = (batch, layer.in_channels, size, size)
            if up == 1:
                yield Convolution("y", x, tuple(layer.weight.shape), 1, (kernel // 2,) * 2, _dtype(block, device))
            else:
                yield transposed(x, layer.weight.shape[0], kernel, up, _dtype(block, device))


def _dtype(module: torch.nn.Module, device: torch.device) -> torch.dtype:
    if device.type != "cuda" or not module.use_fp16:
        return torch.float32
    return torch.bfloat16 if module.half_dtype == "bf16" else torch.float16


def build(cfg: str, resolution: int, cbase: int, rays: str, device: torch.device, cmax: int | None = None, **synthesis_kwargs: object) -> torch.nn.Module:
    """An untrained generator of a preset."""
    preset = PRESETS[cfg]
    kwargs = dict(preset.synthesis_kwargs, **synthesis_kwargs)
    G = construct_class_by_name(512, 25, 512, resolution, 3, class_name=preset.generator, channel_base=cbase * preset.G_width,
                                channel_max=(cmax or preset.cmax) * preset.G_width, rays=rays, **kwargs)
    return G.eval().requires_grad_(False).to(device)


def inputs_of(G: torch.nn.Module, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Intermediate latents and cameras."""
    ws = G.mapping(torch.randn(batch, G.z_dim, device=device), None)
    return ws, camera_for("ffhq", yaw=0.3, pitch=0.1).to_label().to(device).expand(batch, -1)


@click.command(epilog=examples(__doc__))
@click.option("--cfg", type=click.Choice(CFGS), default="raycond2", show_default=True)
@click.option("--resolution", default=512, show_default=True)
@click.option("--cbase", default=32768, show_default=True)
@click.option("--cmax", type=int, help="Channels at most  [default: as the preset]")
@click.option("--batch", default=1, show_default=True)
@click.option("--rays", default="pinhole", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--rounds", default=5, show_default=True, help="Each measures both sides; the median counts")
@click.option("--repeats", default=1, show_default=True, help="Passes of both sides in a round; their median counts")
@click.option("--seconds", default=600.0, show_default=True, help="About how long to measure; at least one round")
@click.option("--csv", "csv_path", help="Append the result to this file", metavar="FILE")
@torch.no_grad()
def main(cfg: str, resolution: int, cbase: int, cmax: int | None, batch: int, rays: str, device: str, threads: int, rounds: int, repeats: int,
         seconds: float, csv_path: str | None) -> None:
    """Print seconds of generator and bare convolutions, the ratio last."""
    begin = time.perf_counter()
    place = prepare(device, threads)
    G = build(cfg, resolution, cbase, rays, place, cmax)
    ws, c = inputs_of(G, batch, place)
    counts = collections.Counter(convolutions_of(G, batch, place))
    bare = BareConvolutions(place)

    def forward() -> torch.Tensor:
        return G.synthesis(ws, c, noise_mode="const")

    forward()
    for conv in counts:
        bare.choose(conv)
    results = in_turns(dict(generator=lambda: statistics.median(timed(forward, place) for _ in range(repeats)),
                            convolutions=lambda: statistics.median(bare.seconds(counts) for _ in range(repeats))),
                       rounds, seconds - (time.perf_counter() - begin))
    ratios = [whole / part for whole, part in zip(results["generator"], results["convolutions"])]
    usual = {name: statistics.median(values) for name, values in results.items()}
    row = dict(network=cfg, resolution=resolution, cbase=cbase, batch=batch, device=device_name(place),
               threads=threads, generator_s=round(usual["generator"], 4), convolutions_s=round(usual["convolutions"], 4),
               ratio=round(statistics.median(ratios), 3), rounds=len(ratios))
    if csv_path:
        save_rows(csv_path, [row])
    print(f"{cfg} {resolution} px, cbase {cbase}, batch {batch}, {row['device']}, torch {torch.__version__}")
    print(f"generator         {row['generator_s']:.3f} s")
    print(f"bare convolutions {row['convolutions_s']:.3f} s")
    print(f"ratio             {row['ratio']:.2f}  (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
