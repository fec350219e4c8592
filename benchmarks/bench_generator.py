"""How far a generator is from its own convolutions: time of a forward pass / time of the bare convolutions.

    python benchmarks/bench_generator.py                        # raycond2, 512 px, batch 1, CPU
    python benchmarks/bench_generator.py --resolution=128 --threads=2 --csv=benchmarks/generator.csv
    python benchmarks/bench_generator.py --cfg=raycond3-t --resolution=64
    python benchmarks/bench_generator.py --device=cuda --batch=32 --half=bf16 --ways=eager,compile,graph

Each convolution counts with the fastest way to compute it (convolutions.py). Both sides are measured in turns in this
one run, so that other work on the machine affects both. The median of the rounds' ratios counts.

`--ways`: eager, compiled by torch.compile, replayed as a CUDA graph. Latents are mapped beforehand; what is timed is
the synthesis of a batch from given cameras with constant noise. `difference` is the largest deviation of an image
from the first way's, in units of the image's range of 2. A way that does not work here is named with the reason.
"""

from __future__ import annotations

import collections
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from convolutions import BareConvolutions, Convolution, transposed
from timing import Session, calls_on, examples, network, session, timed

from camera_utils.datasets import camera_for
from dnnlib.util import construct_class_by_name
from training import networks_stylegan2, networks_stylegan3
from training.presets import PRESETS

CFGS = [name for name, row in PRESETS.items() if row.rays and row.z_dim == 512]
WARM_UP = 3                             # runs before a graph is captured: allocations, cuDNN's choices

Forward = Callable[[], torch.Tensor]


def convolutions_of(G: torch.nn.Module, batch: int, device: torch.device) -> Iterator[Convolution]:
    """The convolutions of a forward pass, by the shapes of the layers, however the layers compute them."""
    for name, layer in G.synthesis.named_modules():
        if isinstance(layer, networks_stylegan3.SynthesisLayer):
            x = (batch, layer.in_channels, int(layer.in_size[1]), int(layer.in_size[0]))
            yield Convolution("y", x, tuple(layer.weight.shape), 1, (layer.conv_kernel - 1,) * 2, _dtype(layer, device))
        elif isinstance(layer, (networks_stylegan2.SynthesisLayer, networks_stylegan2.ToRGBLayer)):
            block = G.synthesis.get_submodule(name.rpartition(".")[0])
            up, kernel, dtype = getattr(layer, "up", 1), layer.weight.shape[-1], _dtype(block, device)
            x = (batch, layer.in_channels, block.resolution // up, block.resolution // up)
            if up == 1:
                yield Convolution("y", x, tuple(layer.weight.shape), 1, (kernel // 2,) * 2, dtype)
            else:
                yield transposed(x, layer.weight.shape[0], kernel, up, dtype)


def _dtype(module: torch.nn.Module, device: torch.device) -> torch.dtype:
    if device.type != "cuda" or not module.use_fp16:
        return torch.float32
    return torch.bfloat16 if module.half_dtype == "bf16" else torch.float16


def build(cfg: str, resolution: int, cbase: int | None, rays: str, device: torch.device, cmax: int | None = None,
          **synthesis_kwargs: object) -> torch.nn.Module:
    """An untrained generator of a preset."""
    preset = PRESETS[cfg]
    kwargs = dict(preset.synthesis_kwargs, rays=rays, channel_base=(cbase or preset.cbase) * preset.G_width,
                  channel_max=(cmax or preset.cmax) * preset.G_width, **synthesis_kwargs)
    G = construct_class_by_name(512, 25, 512, resolution, 3, class_name=preset.generator, **kwargs)
    return G.eval().requires_grad_(False).to(device)


def inputs_of(G: torch.nn.Module, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Intermediate latents and cameras."""
    ws = G.mapping(torch.randn(batch, G.z_dim, device=device), None)
    return ws, camera_for("ffhq", yaw=0.3, pitch=0.1).to_label().to(device).expand(batch, -1).contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# Ways to run it.

def eager(G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor) -> Forward:
    return lambda: G.synthesis(ws, c, noise_mode="const")


def compiled(G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor) -> Forward:
    """By torch.compile with its default options; compiles in the first call."""
    if ws.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        raise RuntimeError("there is no C++ compiler, which torch.compile needs on a CPU")
    torch._dynamo.reset()
    function = torch.compile(lambda ws, c: G.synthesis(ws, c, noise_mode="const"))
    return lambda: function(ws, c)


def graphed(G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor) -> Forward:
    """Recorded once as a CUDA graph, replayed on the same memory."""
    if ws.device.type != "cuda":
        raise RuntimeError("CUDA graphs need a CUDA device")
    forward = eager(G, ws, c)
    stream = torch.cuda.Stream(ws.device)
    stream.wait_stream(torch.cuda.current_stream(ws.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            forward()
    torch.cuda.current_stream(ws.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward()
    return lambda: graph.replay() or output


WAYS = {"eager": eager, "compile": compiled, "graph": graphed}


def first_image(way: str, *args: Any) -> tuple[Forward | None, torch.Tensor | str]:
    """The way, ready to be timed, with its image; or None and why it does not work here."""
    try:
        forward = WAYS[way](*args)
        return forward, forward().clone()
    except Exception as error:          # compilers and captures raise whatever they like; the other ways go on
        return None, next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@click.command(epilog=examples(__doc__))
@network(CFGS, "raycond2", resolution=512, batch=1)
@click.option("--rays", default="pinhole", show_default=True)
@click.option("--half", type=click.Choice(["fp16", "bf16"]), help="Of a GPU's half-precision layers  [default: fp16]")
@click.option("--ways", default="eager", show_default=True, help=f"Some of {','.join(WAYS)}", metavar="A,B")
@session(rounds=5, seconds=600)
@torch.no_grad()
def main(run: Session, cfg: str, resolution: int, batch: int, cbase: int | None, cmax: int | None, rays: str,
         half: str | None, ways: str) -> None:
    """Print a row per way: seconds of generator and bare convolutions, their ratio, images per second."""
    names = ways.split(",")
    for name in names:
        if name not in WAYS:
            raise click.UsageError(f"--ways={ways}: there is no {name!r}; there are {', '.join(WAYS)}")
    G = build(cfg, resolution, cbase, rays, run.device, cmax, **(dict(half_dtype=half) if half else {}))
    ws, c = inputs_of(G, batch, run.device)
    counts = collections.Counter(convolutions_of(G, batch, run.device))
    bare = BareConvolutions(run.device)
    found = {name: first_image(name, G, ws, c) for name in names}
    for conv in counts:
        bare.choose(conv)

    calls = calls_on(run.device)
    measures = {name: lambda f=f: timed(f, run.device, calls) for name, (f, _) in found.items() if f is not None}
    times = run.in_turns(dict(measures, bare=lambda: bare.seconds(counts)))
    bare_s, expected = times.pop("bare"), next((image for f, image in found.values() if f is not None), None)
    setting = dict(network=cfg, resolution=resolution, cbase=cbase or PRESETS[cfg].cbase, batch=batch,
                   device=run.device_name, threads=run.threads, half=half or "", rounds=len(bare_s))
    for name, (_, image) in found.items():
        row = dict(setting, way=name, reason=image if name not in times else "")
        if name in times:
            ratios = [whole / part for whole, part in zip(times[name], bare_s)]
            seconds = statistics.median(times[name])
            row.update(generator_s=f"{seconds:.4f}", convolutions_s=f"{statistics.median(bare_s):.4f}",
                       ratio=f"{statistics.median(ratios):.3f}", images_per_s=f"{batch / seconds:.2f}",
                       difference=f"{float((image - expected).abs().max()) / 2:.1e}")
        run.keep(row)


if __name__ == "__main__":
    main()
