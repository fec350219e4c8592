"""Times of the tensor ops at the sizes that the 512 px generator uses, against copying the same bytes.

    python benchmarks/bench_ops.py                              # CPU, two threads
    python benchmarks/bench_ops.py --device=cuda --csv=benchmarks/ops.csv
    RAYCOND_OPS=reference python benchmarks/bench_ops.py        # the definitions, for comparison

`bandwidth` is the share of the bandwidth that a plain copy of a tensor reaches on the same device in the same run: bytes that
the op must read and write, over its time, over the copy's rate. For convolutions it means nothing and is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from results import save_rows

from torch_utils import custom_ops
from torch_utils.ops import bias_act, conv2d_resample, filtered_lrelu, upfirdn2d

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SIZES = [(1, 512, 64), (1, 128, 256), (1, 64, 512)]             # batch, channels, pixels per side


def median_seconds(function: Callable[[], torch.Tensor], device: torch.device, repeats: int) -> float:
    """Of one call, after a warm-up. On the GPU by events around ten calls, so that launches overlap as in a network."""
    function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(10):
                function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e4)
        else:
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def cases(n: int, channels: int, size: int, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> dict:
    """name -> (call, bytes that it must move; 0: compute-bound)."""
    def features(side: int) -> torch.Tensor:
        return torch.randn([n, channels, side, side], device=device, dtype=dtype).to(memory_format=memory_format)

    x, odd, b = features(size), features(size + 1), torch.randn([channels], device=device, dtype=dtype)
    half = features(size // 2)
    w = torch.randn([channels, channels, 3, 3], device=device, dtype=dtype)
    f = upfirdn2d.setup_filter([1, 3, 3, 1], device=device)
    long = upfirdn2d.setup_filter([1, 4, 9, 16, 22, 26, 26, 22, 16, 9, 4, 1], device=device)
    item = x.element_size()
    return {
        "copy":             (lambda: x.clone(), 2 * x.numel() * item),
        "lrelu+clamp":      (lambda: bias_act.bias_act(x, b, act="lrelu", clamp=256), 2 * x.numel() * item),
        "blur 4x4":         (lambda: upfirdn2d.upfirdn2d(odd, f, padding=1), (odd.numel() + x.numel()) * item),
        "up2 4x4":          (lambda: upfirdn2d.upsample2d(half, f), (half.numel() + x.numel()) * item),
        "down2 4x4":        (lambda: upfirdn2d.downsample2d(x, f), (x.numel() + half.numel()) * item),
        "up2 12 taps":      (lambda: upfirdn2d.upsample2d(half, long), (half.numel() + x.numel()) * item),
        "flrelu up2 down2": (lambda: filtered_lrelu.filtered_lrelu(x, long, long, b, up=2, down=2, padding=[11, 11, 11, 11], clamp=256), 2 * x.numel() * item),
        "conv3x3 up2":      (lambda: conv2d_resample.conv2d_resample(half, w, f=f, up=2, padding=1), 0),
        "conv3x3 down2":    (lambda: conv2d_resample.conv2d_resample(x, w, f=f, down=2, padding=1), 0),
    }


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), help="Default: float16 on CUDA, else float32")
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--repeats", default=5, show_default=True)
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
@torch.no_grad()
def main(device: str, dtype: str | None, threads: int, repeats: int, csv_path: str | None) -> None:
    """Print a row per op, size and memory format."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    kind = getattr(torch, dtype or ("float16" if place.type == "cuda" else "float32"))
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"cpu x{threads}"
    rows = []
    for n, channels, size in SIZES:
        for format_name, memory_format in FORMATS.items():
            copy_rate = None
            for op, (call, moved) in cases(n, channels, size, place, kind, memory_format).items():
                seconds = median_seconds(call, place, repeats)
                copy_rate = moved / seconds if copy_rate is None else copy_rate
                share = f"{moved / seconds / copy_rate:.2f}" if moved else ""
                rows.append(dict(op=op, n=n, channels=channels, size=size, format=format_name, dtype=str(kind).split(".")[1], device=name,
                                 ops=custom_ops.mode(), ms=round(seconds * 1e3, 4), bandwidth=share))
                print(f"{op:16} {n} x {channels:3} x {size:3}^2 {format_name:14} {seconds * 1e3:10.3f} ms   {share}", flush=True)
    if csv_path:
        save_rows(csv_path, rows)


if __name__ == "__main__":
    main()
