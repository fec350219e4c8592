"""All random numbers of a step. They derive from (seed, step, sample index), so a run on W processes draws the same
numbers as a run on one.

A step has `batch_size` samples. Rank r of W, in round k of K (gradient accumulation), computes the samples
r + W (k + K j), j = 0, 1, ... So minibatch-std groups and the samples of path length regularisation are the same for
any W and K. Only layer noise differs between ranks, as it comes from torch's global generators: `seed_layer_noise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.augment.transforms import DrawSource
from training.loss import Draws

_STREAMS = {"z": 0, "label": 1, "mix_z": 2, "mix_cutoff": 3, "image_noise": 4, "layer_noise": 5, "augment": 6,
            "augment_noise": 7}
_PASSES = {"fake": 0, "real": 1}


def _seed_sequence(stream: str, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([_STREAMS[stream], *key])


def _generator(stream: str, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(_seed_sequence(stream, *key)))


def seed_layer_noise(seed: int, step: int, rank: int) -> None:
    """Seeds torch's global generators (CPU and CUDA) for one step of one rank."""
    drawn = _seed_sequence("layer_noise", seed, step, rank).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(drawn >> np.uint64(1)))


@dataclass(frozen=True)
class PhaseRandom:
    """The draws of one phase of one step."""

    seed: int
    step: int
    phase: int
    batch_size: int

    def z(self, z_dim: int) -> np.ndarray:
        """Latents of the whole batch, [batch_size, z_dim] float32."""
        return self._stream("z").standard_normal([self.batch_size, z_dim], dtype=np.float32)

    def label_indices(self, num_items: int) -> np.ndarray:
        """The item of the data set whose label each sample gets, [batch_size] int64."""
        return self._stream("label").integers(num_items, size=self.batch_size)

    def draws(self, samples: np.ndarray) -> Draws:
        """The draws of the loss, for the samples with these indices in the batch."""
        def mix_z(z: Tensor) -> Tensor:
            drawn = self._stream("mix_z").standard_normal([self.batch_size, z.shape[1]], dtype=np.float32)
            return torch.from_numpy(drawn[samples[: len(z)]]).to(z.device)

        def mix_cutoff(batch: int, num_ws: int, probability: float) -> Tensor:
            generator = self._stream("mix_cutoff")
            mixes = generator.random(self.batch_size) < probability
            cutoff = np.where(mixes, generator.integers(1, num_ws, size=self.batch_size), num_ws)
            return torch.from_numpy(cutoff[samples[:batch]])

        def image_noise(images: Tensor) -> Tensor:
            return _noise_per_sample(images, samples, "image_noise", self.seed, self.step, self.phase)

        def augment(kind: str) -> DrawSource:
            return AugmentDraws((self.seed, self.step, self.phase, _PASSES[kind]), samples, self.batch_size)

        return Draws(mix_z=mix_z, mix_cutoff=mix_cutoff, image_noise=image_noise, augment=augment)

    def _stream(self, name: str) -> np.random.Generator:
        return _generator(name, self.seed, self.step, self.phase)


class AugmentDraws(DrawSource):
    """The draws that augment one pass of D. Each name has its own stream for the whole batch, of which the samples with
    these indices get theirs.
    """

    def __init__(self, key: tuple[int, ...], samples: np.ndarray, batch_size: int):
        self.key = key                                  # seed, step, phase, pass
        self.samples = samples
        self.batch_size = batch_size

    def uniform(self, name: str, shape: list[int]) -> Tensor:
        return self._mine(self._stream(name).random([self.batch_size, *shape[1:]], dtype=np.float32), shape)

    def normal(self, name: str, shape: list[int]) -> Tensor:
        return self._mine(self._stream(name).standard_normal([self.batch_size, *shape[1:]], dtype=np.float32), shape)

    def image_noise(self, name: str, images: Tensor) -> Tensor:
        return _noise_per_sample(images, self.samples, "augment_noise", *self.key, _number_of(name))

    def _stream(self, name: str) -> np.random.Generator:
        return _generator("augment", *self.key, _number_of(name))

    def _mine(self, drawn: np.ndarray, shape: list[int]) -> Tensor:
        assert shape[0] == len(self.samples), f"draws of shape {shape} for {len(self.samples)} samples"
        return torch.from_numpy(drawn[self.samples])


def _number_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big")


def _noise_per_sample(images: Tensor, samples: np.ndarray, stream: str, *key: int) -> Tensor:
    """Normal noise like `images`, drawn on their device, each row with its sample's own seed."""
    generator = torch.Generator(images.device)
    noise = torch.empty_like(images)
    for row, sample in zip(noise, samples):
        seed = _seed_sequence(stream, *key, int(sample)).generate_state(1)[0]
        row.normal_(generator=generator.manual_seed(int(seed)))
    return noise


def samples_of(rank: int, world_size: int, num_rounds: int, batch_size: int) -> list[np.ndarray]:
    """For each round, the samples of the batch that this rank computes."""
    mine = np.arange(rank, batch_size, world_size)
    return [mine[k::num_rounds] for k in range(num_rounds)]
