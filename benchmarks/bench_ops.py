"""Times of the tensor ops, forward and backward, against copying the same bytes, and against their definitions compiled by torch.compile.

    python benchmarks/bench_ops.py                                                  # CPU, two threads, sizes of the 512 px generator
    python benchmarks/bench_ops.py --device=cuda --large --backward --compiled --csv=benchmarks/ops.csv
    RAYCOND_OPS=reference python benchmarks/bench_ops.py                            # the definitions, for comparison

`bandwidth` is the share of the bandwidth that a plain copy of a tensor reaches on the same device in the same run: bytes that
the op must read and write, over its time, over the copy's rate. Backward passes must read the gradient of the output and what tells
the sign of the activation, and write the gradient of the input. For convolutions it means nothing and is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from results import save_rows
from timing import device_name, examples, median_seconds, prepare

from torch_utils import custom_ops
from torch_utils.ops import bias_act, conv2d_resample, filtered_lrelu, upfirdn2d

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SIZES = "1x512x64,1x128x256,1x64x512"                       # batch x channels x pixels per side
LARGE_SIZES = "32x128x256,32x64x512"                        # 512 MB and more in half precision
DTYPES = ["float16", "bfloat16", "float32"]


class Case(NamedTuple):
    """An op on its inputs."""

    call: Callable[[torch.Tensor, str], torch.Tensor]       # of x; "cuda": the fastest path, "ref": the definition
    x: torch.Tensor
    output: int                                             # elements
    kept: int = 0                                           # elements that the backward pass must read besides

    def moved(self, direction: str) -> int:
        """Bytes; 0: compute-bound."""
        if self.output == 0:
            return 0
        return (self.x.numel() + self.output + (self.kept if direction == "backward" else 0)) * self.x.element_size()


class Setting(NamedTuple):
    """Where and on what the ops run."""

    n: int
    channels: int
    size: int
    format: str
    dtype: str
    device: torch.device

    def features(self, side: int) -> torch.Tensor:
        x = torch.randn([self.n, self.channels, side, side], device=self.device, dtype=getattr(torch, self.dtype))
        return x.to(memory_format=FORMATS[self.format])


def cases(setting: Setting) -> dict[str, Case]:
    """name -> op, "copy" first."""
    size, channels, device = setting.size, setting.channels, setting.device
    x, odd, half = setting.features(size), setting.features(size + 1), setting.features(size // 2)
    b = torch.randn([channels], device=device, dtype=x.dtype)
    w = torch.randn([channels, channels, 3, 3], device=device, dtype=x.dtype)
    f = upfirdn2d.setup_filter([1, 3, 3, 1], device=device)
    long = upfirdn2d.setup_filter([1, 4, 9, 16, 22, 26, 26, 22, 16, 9, 4, 1], device=device)
    flrelu = dict(fu=long, fd=long, b=b, up=2, down=2, padding=[11, 11, 11, 11], clamp=256)
    return {
        "copy":             Case(lambda x, impl: x.clone(), x, x.numel()),
        "lrelu+clamp":      Case(lambda x, impl: bias_act.bias_act(x, b, act="lrelu", clamp=256, impl=impl), x, x.numel(), kept=x.numel()),
        "blur 4x4":         Case(lambda x, impl: upfirdn2d.upfirdn2d(x, f, padding=1, impl=impl), odd, x.numel()),
        "up2 4x4":          Case(lambda x, impl: upfirdn2d.upsample2d(x, f, impl=impl), half, x.numel()),
        "down2 4x4":        Case(lambda x, impl: upfirdn2d.downsample2d(x, f, impl=impl), x, half.numel()),
        "up2 12 taps":      Case(lambda x, impl: upfirdn2d.upsample2d(x, long, impl=impl), half, x.numel()),
        "flrelu up2 down2": Case(lambda x, impl: filtered_lrelu.filtered_lrelu(x, impl=impl, **flrelu), x, x.numel()),
        "conv3x3 up2":      Case(lambda x, impl: conv2d_resample.conv2d_resample(x, w, f=f, up=2, padding=1), half, 0),
        "conv3x3 down2":    Case(lambda x, impl: conv2d_resample.conv2d_resample(x, w, f=f, down=2, padding=1), x, 0),
    }


def forward_of(case: Case, path: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The op as a function of x alone."""
    if path == "compiled":
        torch._dynamo.reset()
        return torch.compile(lambda x: case.call(x, "ref"))
    return lambda x: case.call(x, "cuda")


def call_of(case: Case, path: str, direction: str) -> Callable[[], object]:
    """What is timed: the op without a graph, or its gradient of the input again and again."""
    forward = forward_of(case, path)
    if direction == "forward":
        return lambda: forward(case.x)
    x = case.x.detach().requires_grad_(True)
    y = forward(x)
    gradient = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)


def parse_sizes(text: str) -> list[tuple[int, ...]]:
    """'1x512x64,1x64x512'."""
    try:
        sizes = [tuple(map(int, item.split("x"))) for item in text.split(",")]
    except ValueError:
        sizes = [()]
    if any(len(size) != 3 or min(size) < 1 for size in sizes):
        raise click.UsageError(f"--sizes={text}: expected batch x channels x pixels per side, such as {SIZES}")
    return sizes


class Bench:
    """Measures cases and keeps rows."""

    def __init__(self, repeats: int, csv_path: str | None):
        self.repeats = repeats
        self.csv_path = csv_path
        self.copy_rates: dict[Setting, float] = {}

    def measure(self, setting: Setting, op: str, case: Case, direction: str, path: str) -> None:
        """One row. The first of a setting must be the copy."""
        with torch.set_grad_enabled(direction == "backward"):
            seconds = median_seconds(call_of(case, path, direction), setting.device, self.repeats)
        moved = case.moved(direction)
        if op == "copy":
            self.copy_rates[setting] = moved / seconds
        share = f"{moved / seconds / self.copy_rates[setting]:.3f}" if moved else ""
        row = dict(op=op, direction=direction, path=path, n=setting.n, channels=setting.channels, size=setting.size, format=setting.format,
                   dtype=setting.dtype, mb=f"{case.x.numel() * case.x.element_size() / 1e6:.1f}", device=device_name(setting.device),
                   ops=custom_ops.mode(), ms=f"{seconds * 1e3:.4f}", bandwidth=share)
        print(f"{op:16} {direction:8} {path:8} {setting.n} x {setting.channels:3} x {setting.size:3}^2 {setting.format:13} {setting.dtype:8} "
              f"{seconds * 1e3:10.3f} ms   {share}", flush=True)
        if self.csv_path is not None:
            save_rows(self.csv_path, [row])


def combinations(sizes: list[tuple[int, ...]], dtypes: list[str], device: torch.device) -> Iterator[Setting]:
    for dtype in dtypes:
        for size in sizes:
            for name in FORMATS:
                yield Setting(*size, name, dtype, device)


@click.command(epilog=examples(__doc__))
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", "dtypes", help=f"{', '.join(DTYPES)}  [default: float32; on CUDA float16, with --large all]", metavar="A,B")
@click.option("--sizes", help=f"Batch x channels x pixels per side  [default: {SIZES}; with --large {LARGE_SIZES}]", metavar="NxCxS,...")
@click.option("--large", is_flag=True, help="Tensors of 500 MB and more, in all dtypes: for GPUs")
@click.option("--backward", is_flag=True, help="Backward passes, too")
@click.option("--compiled", is_flag=True, help="The definitions under torch.compile, too; the first size and dtype, contiguous")
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--repeats", default=5, show_default=True)
@click.option("--seconds", default=3600.0, show_default=True, help="About how long to measure; what does not fit is named")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(device: str, dtypes: str | None, sizes: str | None, large: bool, backward: bool, compiled: bool, threads: int, repeats: int, seconds: float,
         csv_path: str | None) -> None:
    """Print a row per op, size, memory format, dtype and direction."""
    end = time.perf_counter() + seconds
    place = prepare(device, threads)
    default = ["float32"] if place.type == "cpu" else DTYPES if large else ["float16"]
    chosen = default if dtypes is None else dtypes.split(",")
    if not set(chosen) <= set(DTYPES):
        raise click.UsageError(f"--dtype={dtypes}: expected some of {', '.join(DTYPES)}")
    settings = list(combinations(parse_sizes(sizes or (LARGE_SIZES if large else SIZES)), chosen, place))
    directions = ["forward", "backward"] if backward else ["forward"]
    bench = Bench(repeats, csv_path)
    for path, group in [("ours", settings), ("compiled", settings[:1] if compiled else [])]:
        for setting in group:
            for op, case in cases(setting).items():
                for direction in directions:
                    alone = op == "copy" and (direction == "backward" or path == "compiled")
                    if alone or (path == "compiled" and case.output == 0):
                        continue
                    if time.perf_counter() > end:
                        print(f"{op} {direction} {path} {setting.n}x{setting.channels}x{setting.size} {setting.format} {setting.dtype}: not measured (time)")
                        continue
                    bench.measure(setting, op, case, direction, path)


if __name__ == "__main__":
    main()
