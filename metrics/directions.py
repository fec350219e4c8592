"""Viewing directions: angles between them, and what a guess is worth. Pose error is the angle between the direction asked for and the one shown."""

from __future__ import annotations

import numpy as np
import torch

from camera_utils import yaw_pitch

MAX_CANDIDATES = 500                     # directions that are tried as the best constant one
CHUNK = 1000                             # rows of an all-pairs table at a time
MIN_SPREAD = 1e-3                        # standard deviation of an angle [rad] below which a slope over it means nothing


def angles_deg(directions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Angles [deg] between unit vectors, [..., 3] each, broadcast. Exact for small angles too, where an arc cosine is not."""
    directions, others = (np.asarray(array, dtype=np.float64) for array in (directions, others))
    half_chord = np.linalg.norm(directions - others, axis=-1) / 2
    return np.degrees(2 * np.arcsin(np.clip(half_chord, 0, 1)))


def best_constant_direction(directions: np.ndarray) -> np.ndarray:
    """The unit vector [3] with the smallest mean angle to unit vectors [N, 3] (their median on the sphere), to a small part of a degree.

    Starts from the best among their mean and some of themselves, so that cameras all around, whose mean is near zero, are no trouble;
    then Weiszfeld's iteration, on the tangent plane.
    """
    directions = np.asarray(directions, dtype=np.float64)
    mean = directions.mean(axis=0)
    some = directions[np.linspace(0, len(directions) - 1, min(len(directions), MAX_CANDIDATES)).astype(int)]
    candidates = [*some, mean / np.linalg.norm(mean)] if np.linalg.norm(mean) > 1e-6 else list(some)
    best = min(candidates, key=lambda candidate: angles_deg(directions, candidate).mean())
    point = best
    for _ in range(50):
        angle = np.radians(angles_deg(directions, point))
        tangent = directions - (directions @ point)[:, None] * point
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)        # unit vectors towards each direction
        weight = 1 / np.maximum(angle, 1e-3)
        point = point + (tangent * (weight * angle)[:, None]).sum(axis=0) / weight.sum()
        point /= np.linalg.norm(point)
        if angles_deg(directions, point).mean() < angles_deg(directions, best).mean():
            best = point
    return best


def chance_deg(requested: np.ndarray) -> float:
    """Mean angle [deg] from unit vectors [N, 3] to the best constant direction: what can be had without looking at the image."""
    return float(angles_deg(requested, best_constant_direction(requested)).mean())


def shuffled_deg(requested: np.ndarray, recovered: np.ndarray) -> float:
    """Mean angle [deg] between every requested and every recovered direction, [N, 3] each: what the same images would score if each had
    been made for a camera drawn at random. A network that ignores its camera scores this."""
    sums = [angles_deg(requested[start:start + CHUNK, None], recovered[None]).sum() for start in range(0, len(requested), CHUNK)]
    return float(sum(sums) / (len(requested) * len(recovered)))


def compare_directions(requested: np.ndarray, recovered: np.ndarray) -> dict[str, float]:
    """Unit vectors [N, 3] in the world frame. Returns angles [deg]: mean, median, and the two yardsticks `chance` and `shuffled`."""
    assert requested.shape == recovered.shape and requested.ndim == 2 and requested.shape[1] == 3, (requested.shape, recovered.shape)
    angle = angles_deg(requested, recovered)
    return dict(mean=float(angle.mean()), median=float(np.median(angle)), chance=chance_deg(requested), shuffled=shuffled_deg(requested, recovered))


def turns(requested: np.ndarray, recovered: np.ndarray, up: str) -> dict[str, float]:
    """How yaw and pitch follow what was asked for. Unit vectors [N, 3] in the world frame, whose vertical axis is `up`.

    Returns the mean errors `yaw` and `pitch` [deg] and the slopes `yaw_slope` and `pitch_slope` of the least-squares
    line through recovered over requested angles: 1 for a network that turns as far as asked, 0 for one that does not
    turn. nan where all cameras have the same angle.
    """
    result = {}
    for name, asked, seen in zip(("yaw", "pitch"), gaze_rad(requested, up), gaze_rad(recovered, up)):
        off = (seen - asked + np.pi) % (2 * np.pi) - np.pi                  # yaw goes around
        spread = asked - asked.mean()
        varies = spread.std() > MIN_SPREAD
        result[name] = float(np.degrees(np.abs(off)).mean())
        result[f"{name}_slope"] = float(1 + (spread * off).sum() / np.square(spread).sum()) if varies else float("nan")
    return result


def gaze_rad(directions: np.ndarray, up: str) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch [rad], [N] each, of where a camera that looks along unit vectors [N, 3] at the origin stands."""
    position = -torch.from_numpy(np.asarray(directions, dtype=np.float64))
    yaw, pitch = yaw_pitch(position, up)
    return yaw.numpy(), pitch.numpy()
