"""What is generated for a metric: sample i's latent and label derive from (seed, i) alone.

Layer noise (StyleGAN2's) comes from torch's global generators, and is seeded for each pass. Passes are of a fixed size whose
boundaries do not depend on the number of processes, so that n processes make the images that one makes.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metrics.options import MetricOptions
from training.snapshots import to_uint8


@dataclass(frozen=True)
class Batch:
    """The samples of one pass."""

    index: np.ndarray                    # [B] int64, numbers of the samples
    z: torch.Tensor                      # [B, z_dim]
    c: torch.Tensor                      # [B, c_dim], labels of items of the data set
    noise_seed: int                      # of the layer noise


def rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """Draws number `index` of the stream with that name."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index])))


def passes(opts: MetricOptions, num_items: int, size: int) -> Iterator[np.ndarray]:
    """The numbers [B] of each pass of this rank: passes of `size` items, dealt to the ranks in turn."""
    for start in range(opts.rank * size, num_items, opts.num_gpus * size):
        yield np.arange(start, min(start + size, num_items))


def iterate_samples(opts: MetricOptions, num_samples: int, stream: str = "sample") -> Iterator[Batch]:
    """This rank's share of samples 0 .. num_samples - 1. Another `stream` gives other ones."""
    dataset = opts.dataset() if opts.G.c_dim > 0 else None
    for index in passes(opts, num_samples, opts.batch_gen):
        z, c = [], []
        for i in index:
            draw = rng(opts.seed, stream, int(i))
            z.append(draw.standard_normal(opts.G.z_dim, dtype=np.float32))
            c.append(np.zeros([0], dtype=np.float32) if dataset is None else dataset.get_label(int(draw.integers(len(dataset)))))
        noise_seed = int(rng(opts.seed, stream + "/noise", int(index[0])).integers(2 ** 62))
        yield Batch(index, torch.from_numpy(np.stack(z)).to(opts.device), torch.from_numpy(np.stack(c)).to(opts.device), noise_seed)


def generate(opts: MetricOptions, batch: Batch, z: torch.Tensor | None = None, c: torch.Tensor | None = None) -> torch.Tensor:
    """Images uint8 [B, C, H, W] on the device. z, c: in place of the batch's own (as many or more rows).

    Reseeds torch's global generators; `preserve_rng` keeps that from the rest of the program.
    """
    torch.manual_seed(batch.noise_seed)
    images = opts.G(batch.z if z is None else z, batch.c if c is None else c, **opts.G_kwargs)
    return to_uint8(images)


@contextlib.contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Afterwards torch's global generators are in the state that they were in."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Over processes.

def sum_over_ranks(opts: MetricOptions, array: np.ndarray) -> np.ndarray:
    """Sum of each rank's array, in float64."""
    if opts.num_gpus == 1:
        return array
    total = torch.from_numpy(np.array(array, dtype=np.float64)).to(opts.device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


def broadcast_object(opts: MetricOptions, value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    if opts.num_gpus == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=opts.device)
    return box[0]


def gather_rows(opts: MetricOptions, rows: list, index: list, num_items: int) -> np.ndarray:
    """All ranks' rows in the order of their numbers, [num_items, ...] in the dtype of the rows, on all ranks.

    rows: tensors or arrays [B, ...]; index: for each of them the numbers [B] of its rows. Every number occurs once over all ranks.
    """
    arrays = [row.detach().cpu().numpy() if isinstance(row, torch.Tensor) else np.asarray(row) for row in rows]
    mine = (np.concatenate([np.asarray(i) for i in index]) if index else np.zeros([0], dtype=np.int64), np.concatenate(arrays) if arrays else None)
    parts = [mine]
    if opts.num_gpus > 1:
        parts = [None] * opts.num_gpus
        torch.distributed.all_gather_object(parts, mine)
    parts = [part for part in parts if part[1] is not None]
    out = np.zeros([num_items, *parts[0][1].shape[1:]], dtype=parts[0][1].dtype)
    seen = np.zeros([num_items], dtype=np.int64)
    for numbers, values in parts:
        out[numbers] = values
        np.add.at(seen, numbers, 1)
    assert (seen == 1).all(), f"{(seen != 1).sum()} of {num_items} rows are missing or doubled"
    return out
