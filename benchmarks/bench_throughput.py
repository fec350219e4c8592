"""Images per second of a generator: batch sizes, half precisions, and eager, compiled, or replayed as a CUDA graph.

    python benchmarks/bench_throughput.py --device=cuda                             # raycond2, 512 px
    python benchmarks/bench_throughput.py --device=cuda --cfg=raycond3-t --batches=1,8,32 --csv=benchmarks/throughput.csv
    python benchmarks/bench_throughput.py --resolution=16 --cbase=256 --cmax=16     # on the CPU: float32, no graphs

Latents are mapped beforehand; what is timed is the synthesis of a batch from given cameras with constant noise. `difference` is the
largest deviation of an image from the eager one, in units of the image's range of 2. A way that cannot be had is named with the reason.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from bench_generator import CFGS, build, inputs_of
from results import save_rows
from timing import device_name, examples, in_turns, median_seconds, prepare

WARM_UP = 3                             # runs before a graph is captured: allocations, cuDNN's choices

Forward = Callable[[], torch.Tensor]


class Unavailable(Exception):
    """Why a way cannot be had here, in one line."""


def eager(G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor) -> Forward:
    return lambda: G.synthesis(ws, c, noise_mode="const")


def compiled(G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor) -> Forward:
    """By torch.compile with its default options; compiles in the first call."""
    if ws.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        raise Unavailable("there is no C++ compiler, which torch.compile needs on a CPU")
    torch._dynamo.reset()
    function = torch.compile(lambda ws, c: G.synthesis(ws, c, noise_mode="const"))
    return lambda: function(ws, c)


def graphed(G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor) -> Forward:
    """Recorded once as a CUDA graph, replayed on the same memory."""
    if ws.device.type != "cuda":
        raise Unavailable("CUDA graphs need a CUDA device")
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

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


WAYS = {"eager": eager, "compile": compiled, "graph": graphed}


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]


def prepare_ways(names: list[str], G: torch.nn.Module, ws: torch.Tensor, c: torch.Tensor, end: float) -> tuple[dict[str, Forward], dict[str, str]]:
    """The ways that work, each called once; why the others do not."""
    forwards, reasons = {}, {}
    for name in names:
        if time.perf_counter() > end and forwards:
            reasons[name] = "not measured (time)"
            continue
        try:
            forward = WAYS[name](G, ws, c)
            forward()
            forwards[name] = forward
        except Unavailable as error:
            reasons[name] = str(error)
        except Exception as error:                      # the compiler and the capture raise whatever they like; the other ways go on
            reasons[name] = first_line(error)
    return forwards, reasons


@click.command(epilog=examples(__doc__))
@click.option("--cfg", type=click.Choice(CFGS), default="raycond2", show_default=True)
@click.option("--resolution", default=512, show_default=True)
@click.option("--cbase", default=32768, show_default=True)
@click.option("--cmax", type=int, help="Channels at most  [default: as the preset]")
@click.option("--batches", default="1,32", show_default=True, help="Images in a pass", metavar="A,B")
@click.option("--dtypes", default="fp16,bf16", show_default=True, help="Of the half-precision layers on a GPU; a CPU computes in float32", metavar="A,B")
@click.option("--ways", default=",".join(WAYS), show_default=True, metavar="A,B")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--rounds", default=5, show_default=True, help="Each measures all ways in turns; the best counts")
@click.option("--seconds", default=600.0, show_default=True, help="About how long to measure; eager in any case")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
@torch.no_grad()
def main(cfg: str, resolution: int, cbase: int, cmax: int | None, batches: str, dtypes: str, ways: str, device: str, threads: int, rounds: int,
         seconds: float, csv_path: str | None) -> None:
    """Print a row per batch size, precision and way."""
    begin = time.perf_counter()
    place = prepare(device, threads)
    for name in ways.split(","):
        if name not in WAYS:
            raise click.UsageError(f"--ways={ways}: there is no {name!r}; there are {', '.join(WAYS)}")
    kinds = dtypes.split(",") if place.type == "cuda" else ["float32"]
    cases = [(dtype, batch) for dtype in kinds for batch in map(int, batches.split(","))]
    for index, (dtype, batch) in enumerate(cases):
        left = seconds - (time.perf_counter() - begin)
        share = left / (len(cases) - index)
        end = time.perf_counter() + share
        G = build(cfg, resolution, cbase, "pinhole", place, cmax, **({} if dtype == "float32" else dict(half_dtype=dtype)))
        ws, c = inputs_of(G, batch, place)
        c = c.contiguous()
        forwards, reasons = prepare_ways(ways.split(","), G, ws, c, end)
        expected = forwards["eager"]().clone() if "eager" in forwards else None
        differences = {name: float((forward() - expected).abs().max()) / 2 for name, forward in forwards.items()} if expected is not None else {}
        times = in_turns({name: lambda f=f: median_seconds(f, place, 1) for name, f in forwards.items()}, rounds, max(end - time.perf_counter(), 0))
        rows = []
        for name in ways.split(","):
            row = dict(network=cfg, resolution=resolution, cbase=cbase, batch=batch, dtype=dtype, device=device_name(place), threads=threads, way=name)
            if name in times:
                row.update(images_per_s=f"{batch / min(times[name]):.2f}", ms=f"{min(times[name]) * 1e3:.2f}",
                           difference=f"{differences[name]:.1e}" if name in differences else "", reason="")
            else:
                row.update(images_per_s="", ms="", difference="", reason=reasons[name])
            rows.append(row)
            print(f"{cfg} {resolution} px, batch {batch}, {dtype}, {name:8} "
                  + (f"{row['images_per_s']:>9} images/s, off by {row['difference'] or '?'}" if name in times else row["reason"]), flush=True)
        if csv_path is not None:
            save_rows(csv_path, rows)


if __name__ == "__main__":
    main()
