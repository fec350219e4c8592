"""Times of the tensor ops, forward and backward, relative to copying the same bytes; of their definitions, compiled.

    python benchmarks/bench_ops.py                                      # CPU, sizes of the 512 px generator
    python benchmarks/bench_ops.py --device=cuda --large --backward --compiled --csv=benchmarks/ops.csv
    RAYCOND_OPS=reference python benchmarks/bench_ops.py                # the definitions, for comparison

`bandwidth` is the share of the bandwidth that copying a tensor reaches on the same device in the same run: the bytes
that the op must read and write, over its time, over the copy's rate. Backward passes must read the gradient of the
output and what tells the sign of the activation, and write the gradient of the input. Convolutions have no such
share.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from timing import Session, calls_on, examples, session, timed

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
    output: int                                             # elements; 0: bound by arithmetic
    kept: int = 0                                           # elements that the backward pass must also read

    def moved(self, direction: str) -> int:
        """Bytes."""
        kept = self.kept if direction == "backward" else 0
        return (self.x.numel() + self.output + kept) * self.x.element_size() if self.output else 0


class Setting(NamedTuple):
    """On what the ops run."""

    n: int
    channels: int
    size: int
    format: str
    dtype: str


def cases(setting: Setting, device: torch.device) -> dict[str, Case]:
    """name -> op, "copy" first."""
    n, channels, size, memory_format, dtype = setting

    def features(side: int) -> torch.Tensor:
        x = torch.randn([n, channels, side, side], device=device, dtype=getattr(torch, dtype))
        return x.to(memory_format=FORMATS[memory_format])

    x, odd, half = features(size), features(size + 1), features(size // 2)
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


def call_of(case: Case, path: str, direction: str) -> Callable[[], object]:
    """What is timed: the op without a graph, or its gradient of the input again and again."""
    forward = lambda x: case.call(x, "ref" if path == "compiled" else "cuda")                           # noqa: E731
    if path == "compiled":
        torch._dynamo.reset()
        forward = torch.compile(forward)
    if direction == "forward":
        return lambda: forward(case.x)
    x = case.x.detach().requires_grad_(True)
    y = forward(x)
    gradient = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)


def seconds_of(run: Session, case: Case, path: str, direction: str) -> float:
    """Median of a call, after one that does not count."""
    with torch.set_grad_enabled(direction == "backward"):
        call = call_of(case, path, direction)
        call()
        return statistics.median(timed(call, run.device, calls_on(run.device)) for _ in range(run.rounds))


def parse_sizes(text: str) -> list[tuple[int, ...]]:
    """--sizes, checked."""
    try:
        sizes = [tuple(map(int, item.split("x"))) for item in text.split(",")]
    except ValueError:
        sizes = [()]
    if any(len(size) != 3 or min(size) < 1 for size in sizes):
        raise click.UsageError(f"--sizes={text}: expected batch x channels x pixels per side, such as {SIZES}")
    return sizes


@click.command(epilog=examples(__doc__))
@click.option("--dtype", "dtypes", help=f"{', '.join(DTYPES)}  [default: float32; on CUDA float16, with --large all]", metavar="A,B")
@click.option("--sizes", help=f"Batch x channels x pixels per side  [default: {SIZES}; with --large {LARGE_SIZES}]", metavar="NxCxS,...")
@click.option("--large", is_flag=True, help="Tensors of 500 MB and more, in all dtypes: for GPUs")
@click.option("--backward", is_flag=True, help="Also backward passes")
@click.option("--compiled", is_flag=True, help="Also the definitions under torch.compile; the first size and dtype, contiguous")
@session(rounds=5, seconds=3600)
def main(run: Session, dtypes: str | None, sizes: str | None, large: bool, backward: bool, compiled: bool) -> None:
    """Print a row per op, size, memory format, dtype and direction; the median counts."""
    default = ["float32"] if run.device.type == "cpu" else DTYPES if large else ["float16"]
    chosen = default if dtypes is None else dtypes.split(",")
    if not set(chosen) <= set(DTYPES):
        raise click.UsageError(f"--dtype={dtypes}: expected some of {', '.join(DTYPES)}")
    sizes = parse_sizes(sizes or (LARGE_SIZES if large else SIZES))
    settings = [Setting(*size, name, dtype) for dtype in chosen for size in sizes for name in FORMATS]
    copy_rates: dict[Setting, float] = {}
    for path, group in [("ours", settings), ("compiled", settings[:1] if compiled else [])]:
        for setting in group:
            for op, case in cases(setting, run.device).items():
                for direction in ["forward", "backward"] if backward else ["forward"]:
                    is_copy = op == "copy"
                    if is_copy and (direction, path) != ("forward", "ours") or path == "compiled" and case.output == 0:
                        continue
                    row = dict(op=op, direction=direction, path=path, **setting._asdict())
                    if run.left < 0:
                        print(*row.values(), "not measured (time)")
                        continue
                    seconds, moved = seconds_of(run, case, path, direction), case.moved(direction)
                    if is_copy:
                        copy_rates[setting] = moved / seconds
                    run.keep(dict(row, mb=f"{case.x.numel() * case.x.element_size() / 1e6:.1f}", device=run.device_name,
                                  ops=custom_ops.mode(), ms=f"{seconds * 1e3:.4f}",
                                  bandwidth=f"{moved / seconds / copy_rates[setting]:.3f}" if moved else ""))


if __name__ == "__main__":
    main()
