"""The kinds of scenes, and the scene that belongs to a kind and a seed."""

from __future__ import annotations

from dataset_preprocessing.procedural.cars import sample_car
from dataset_preprocessing.procedural.heads import sample_head
from dataset_preprocessing.procedural.scenes import MAX_SEED, Dice, Scene

# Kind to the number that enters its random streams, and its sampler; and to its row in camera_utils.datasets.
KINDS = {"heads": (1, sample_head), "cars": (2, sample_car)}
CAMERAS = {"heads": "heads", "cars": "procedural-cars"}
SCENE_STREAM, VIEW_STREAM = 0, 1


def sample_scene(kind: str, seed: int) -> Scene:
    """The scene of this kind and seed (0 <= seed < 2**53), the same on every machine and in every batch."""
    assert kind in KINDS, f"kind {kind!r}, expected one of {list(KINDS)}"
    number, sample = KINDS[kind]
    assert 0 <= seed <= MAX_SEED, seed
    return sample(Dice(number, SCENE_STREAM, seed), seed)
