"""What is generated for a metric: sample i's latent and label derive from (seed, i) alone.

Layer noise (StyleGAN2's) comes from torch's global generators, and is seeded for each pass. Passes are of a fixed size whose
boundaries do not depend on the number of processes, so that n processes make the images that one makes.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metrics.options import MetricOptions
from training.snapshots import to_uint8

BATCH_DETECTOR = 64                      # images per pass of a detector


@dataclass(frozen=True)
class Batch:
    """The samples of one pass."""

    index: np.ndarray                    # [B] int64, numbers of the samples
    z: torch.Tensor                      # [B, z_dim]
    c: torch.Tensor                      # [B, c_dim], labels of items of the data set
    noise_seed: int                      # of the layer noise

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """z [B, z_dim] and c [B, c_dim]: one latent, or one label, stands for all samples."""
        return tuple(part.expand(len(self.index), -1) if len(part) == 1 else part for part in (self.z, self.c))


def rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """Draws number `index` of the stream with that name."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index])))


def passes(opts: MetricOptions, num_items: int, size: int) -> Iterator[np.ndarray]:
    """The numbers [B] of each pass of this rank: passes of `size` items, dealt to the ranks in turn."""
    for start in range(opts.rank * size, num_items, opts.num_gpus * size):
        yield np.arange(start, min(start + size, num_items))


def iterate(opts: MetricOptions, num_samples: int, stream: str, choose: Callable[[int], tuple[np.ndarray, int | None]]) -> Iterator[Batch]:
    """This rank's share of samples 0 .. num_samples - 1, in passes.

    choose: number of a sample -> its latent, float32 [z_dim], and the item of the data set whose label it gets (of no account where the network
    takes none). It must depend on the number alone. `stream` names the draws of layer noise.
    """
    dataset = opts.dataset() if opts.G.c_dim > 0 else None
    for index in passes(opts, num_samples, opts.batch_gen):
        latents, items = zip(*(choose(int(i)) for i in index))
        z = torch.from_numpy(np.stack(latents))
        if dataset is None:
            c = torch.zeros([len(z), 0], dtype=torch.float32)
        else:
            c = torch.from_numpy(np.stack([dataset.get_label(int(item)) for item in items]))
        noise_seed = int(rng(opts.seed, stream + "/noise", int(index[0])).integers(2 ** 62))
        yield Batch(index, z.to(opts.device), c.to(opts.device), noise_seed)


def iterate_random_labels(opts: MetricOptions, batch_size: int) -> Iterator[torch.Tensor]:
    """Without end, labels drawn from the whole data set: [batch_size, c_dim], the same for the same seed; other ones on each rank."""
    for pass_number in itertools.count(opts.rank, opts.num_gpus):
        if opts.G.c_dim == 0:
            yield torch.zeros([batch_size, 0], dtype=torch.float32, device=opts.device)
            continue
        items = rng(opts.seed, "labels", pass_number).integers(len(opts.dataset()), size=batch_size)
        yield torch.from_numpy(np.stack([opts.dataset().get_label(int(item)) for item in items])).to(opts.device)


def iterate_samples(opts: MetricOptions, num_samples: int, stream: str = "sample") -> Iterator[Batch]:
    """Samples with labels drawn from the whole data set. Another `stream` gives other ones."""
    num_items = len(opts.dataset()) if opts.G.c_dim > 0 else 0

    def choose(i: int) -> tuple[np.ndarray, int | None]:
        draw = rng(opts.seed, stream, i)
        z = draw.standard_normal(opts.G.z_dim, dtype=np.float32)
        return z, draw.integers(num_items) if num_items else None

    return iterate(opts, num_samples, stream, choose)


def generate(opts: MetricOptions, batch: Batch) -> torch.Tensor:
    """Images uint8 [B, C, H, W] on the device. Images that are not finite are counted in opts.broken, and black where they are not.

    Reseeds torch's global generators; `preserve_rng` keeps that from the rest of the program.
    """
    torch.manual_seed(batch.noise_seed)
    images = opts.G(*batch.inputs(), **opts.G_kwargs)
    return to_uint8(count_broken(opts, images).nan_to_num(nan=-1, posinf=1, neginf=-1))


def count_broken(opts: MetricOptions, images: torch.Tensor) -> torch.Tensor:
    """images: [B, C, H, W], returned as they are; opts.broken gets the number of those with pixels that are no numbers."""
    broken = len(images) - int(images.flatten(1).isfinite().all(dim=1).sum())
    if broken:
        opts.broken.append(broken)
    return images


def generated_images(opts: MetricOptions, batches: Iterable[Batch], num_samples: int, what: str) -> Iterator[tuple[Batch, torch.Tensor]]:
    """The batches and their images, several passes in one: a network's passes are small, those of a detector had better be large.

    The joined Batch has no noise seed (-1). num_samples: of all ranks, for the progress bar; what: its caption.
    """
    waiting: list[tuple[Batch, torch.Tensor]] = []
    with opts.bar(num_samples, what) as bar:
        for batch in batches:
            waiting.append((batch, generate(opts, batch)))
            bar.update(len(batch.index) * opts.num_gpus)
            if sum(len(done.index) for done, _ in waiting) >= BATCH_DETECTOR:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


def _joined(parts: list[tuple[Batch, torch.Tensor]]) -> tuple[Batch, torch.Tensor]:
    batches = [batch for batch, _ in parts]
    z, c = (torch.cat(rows) for rows in zip(*(batch.inputs() for batch in batches)))
    whole = Batch(np.concatenate([batch.index for batch in batches]), z, c, -1)
    return whole, torch.cat([images for _, images in parts])


@contextlib.contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Afterwards torch's global generators are in the state that they were in."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Over threads and processes.

def each_on_one_thread(function: Callable[..., Any], calls: Sequence[tuple]) -> list:
    """[function(*call), ...] without gradients; each call has one thread of the CPU, and several run at a time.

    So what comes out does not depend on the number of threads: libraries that share one product among threads round as they share.
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
