"""How well a network obeys its camera (pose_error) and its latent (view_consistency).

One without the other says little: a network that ignores its camera is perfectly consistent, and one that ignores its
latent may have a small pose error. So the two names are one computation on the same images, and every result has both.

The images come in groups of VIEWS latents, each from the group's VIEWS cameras, which are labels drawn from the data
set. Layer noise is drawn anew for each image, so what stays the same within a latent is due to the latent.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from camera_utils import yaw_pitch
from dnnlib.util import UserError
from metrics import metric_utils
from metrics.detectors.convnet import METADATA, read_metadata
from metrics.detectors.pose_regressor import angles_deg, best_constant_direction, viewing_directions
from metrics.metric_utils import Batch, MetricOptions, rng

VIEWS = 4                                # latents in a group, and cameras of each
GROUP = VIEWS * VIEWS                    # images in a group
MIN_SAMPLES = 4 * GROUP
REALS = 1000                             # real images to judge a regressor on, if its file does not state its error
POSE, SCENE = ("pose_regressor", "features"), ("embedding", "features")
CHUNK = 1000                             # rows of an all-pairs table at a time
MIN_SPREAD = 1e-3                        # standard deviation [rad] of angles over which a slope has a meaning


# ---------------------------------------------------------------------------------------------------------------------
# The images.

def layout(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of images [N] -> numbers of their latents, cameras and groups, [N] each."""
    group = index // GROUP
    return index // VIEWS, group * VIEWS + index % VIEWS, group


def camera_items(seed: int, group: int, num_items: int) -> np.ndarray:
    """The items of the data set [VIEWS] whose labels are the group's cameras. They differ if there are enough items."""
    return rng(seed, "views/cameras", group).choice(num_items, VIEWS, replace=num_items < VIEWS)


def iterate_views(opts: MetricOptions, num_samples: int) -> Iterator[Batch]:
    """This rank's share of images 0 .. num_samples - 1."""
    num_items = len(opts.dataset())

    def choose(i: int) -> tuple[np.ndarray, int]:
        latent, camera, group = (int(number) for number in layout(np.array(i)))
        z = rng(opts.seed, "views", latent).standard_normal(opts.G.z_dim, dtype=np.float32)
        return z, camera_items(opts.seed, group, num_items)[camera % VIEWS]

    return metric_utils.iterate(opts, num_samples, "views", choose)


def look_at_views(opts: MetricOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Requested directions [N, 3], recovered ones [N, 3] and embeddings [N, D] of all images, on all ranks."""
    regressor, embedding = opts.detector(*POSE), opts.detector(*SCENE)
    rows, index = [], []
    batches = iterate_views(opts, opts.num_samples)
    for batch, images in metric_utils.generated_images(opts, batches, opts.num_samples, "views"):
        rows.append(torch.cat([viewing_directions(batch.c).float(), unit(regressor(images)), embedding(images)], dim=1))
        index.append(batch.index)
    table = metric_utils.gather_rows(opts, rows, index, opts.num_samples)
    return table[:, :3], table[:, 3:6], table[:, 6:]


def unit(directions: Tensor) -> Tensor:
    """The same directions [N, 3] with length 1."""
    return torch.nn.functional.normalize(directions, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Viewing directions.

def chance_deg(requested: np.ndarray) -> float:
    """Mean angle [deg] of unit vectors [N, 3] to the best constant direction: the best score of a blind guess."""
    return float(angles_deg(requested, best_constant_direction(requested)).mean())


def shuffled_deg(requested: np.ndarray, recovered: np.ndarray) -> float:
    """Mean angle [deg] between every requested and every recovered direction, [N, 3] each.

    It is the score of the same images for random cameras, and so of a network that ignores its camera.
    """
    sums = [angles_deg(requested[start:start + CHUNK, None], recovered[None]).sum()
            for start in range(0, len(requested), CHUNK)]
    return float(sum(sums) / (len(requested) * len(recovered)))


def turns(requested: np.ndarray, recovered: np.ndarray, up: str) -> dict[str, float]:
    """How yaw and pitch follow the request. Unit vectors [N, 3] in a world whose vertical axis is `up`.

    Returns the mean errors `yaw` and `pitch` [deg] and the slopes `yaw_slope` and `pitch_slope` of the least-squares
    line of recovered over requested angles: 1 for a network that turns as far as asked, 0 for one that does not turn.
    A slope is nan if all cameras have the same angle.
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
    """Yaw and pitch [rad], [N] each, of cameras that look at the origin along unit vectors [N, 3]."""
    position = -torch.from_numpy(np.asarray(directions, dtype=np.float64))
    yaw, pitch = yaw_pitch(position, up)
    return yaw.numpy(), pitch.numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Similarities of pairs of images from *different* cameras: of one latent (within), of two latents (between). Both kinds
# use the same pairs of cameras equally often, so an embedding that sees only the camera finds no difference.

def pair_similarities(embedding: np.ndarray, thing: np.ndarray, camera: np.ndarray,
                      group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities of pairs of images of one group from different cameras: of the same thing, of different ones.

    embedding: [N, D], of any length; thing, camera, group: integers [N]. A thing is a latent, or a scene.
    """
    unit = np.asarray(embedding, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    within, between = [], []
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        i, j = np.triu_indices(len(rows), k=1)
        i, j = rows[i], rows[j]
        differ = camera[i] != camera[j]
        same = thing[i] == thing[j]
        similarity = (unit[i] * unit[j]).sum(axis=1)
        within.append(similarity[same & differ])
        between.append(similarity[~same & differ])
    return np.concatenate(within), np.concatenate(between)


def distance_ratio(within: float, between: float) -> float:
    """Mean cosine distance (1 - similarity) within over that between, from mean similarities.

    0 if each latent looks the same from every camera, 1 if the latent makes no difference. Images that are all alike
    (0 / 0) count as 1. A ratio of similarities would have no bound: between things a good embedding has them near zero.
    """
    if 1 - between < 1e-9:
        return 1.0
    return (1 - within) / (1 - between)


def compare_pairs(embedding: np.ndarray, thing: np.ndarray, camera: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Arguments as `pair_similarities`. Returns mean similarities `within`, `between`, and the `ratio` of distances."""
    within, between = (float(pairs.mean()) for pairs in pair_similarities(embedding, thing, camera, group))
    return dict(within=within, between=between, ratio=distance_ratio(within, between))


# ---------------------------------------------------------------------------------------------------------------------
# The two metrics.

def check_views(opts: MetricOptions) -> None:
    """Raises UserError if there are too few images for both kinds of pairs, or if a detector is missing."""
    if opts.num_samples < MIN_SAMPLES:
        raise UserError(f"{opts.num_samples} images, expected {MIN_SAMPLES} or more (groups of {VIEWS} latents from "
                        f"{VIEWS} cameras); give --samples={MIN_SAMPLES}")
    for kind, use in (POSE, SCENE):
        try:
            opts.detector_path(kind, use)
        except UserError as error:
            both = "pose_error and view_consistency are computed and shown together"
            raise UserError(f"{both}, and {error.message}") from error


def camera_metrics(opts: MetricOptions) -> dict:
    """Both metrics; angles in degrees. docs/metrics.md defines each number."""
    count = opts.metric.removeprefix("pose_error").removeprefix("view_consistency")
    requested, recovered, embedding = look_at_views(opts)
    angle = angles_deg(requested, recovered)
    views = compare_pairs(embedding, *layout(np.arange(opts.num_samples)))
    error, consistency = f"pose_error{count}", f"view_consistency{count}"
    by_angle = turns(requested, recovered, opts.dataset().camera_stats()["up"])
    return {
        error: float(angle.mean()),
        f"{error}_median": float(np.median(angle)),
        **real_error(opts, error),
        f"{error}_chance": chance_deg(requested),
        f"{error}_shuffled": shuffled_deg(requested, recovered),
        **{f"{error}_{name}": value for name, value in by_angle.items()},
        consistency: views["within"],
        f"{consistency}_between": views["between"],
        f"{consistency}_ratio": views["ratio"],
        **real_consistency(opts, consistency),
    }


def real_error(opts: MetricOptions, name: str) -> dict:
    """The regressor's error [deg] on real images: held-out ones, from its file, else images of the data set."""
    metadata = read_metadata(opts.detector(*POSE).extra.get(METADATA, ""))
    if "held_out_mean_deg" in metadata:
        source = f"images of {metadata.get('data')} held out from the regressor's training"
        return {f"{name}_real": metadata["held_out_mean_deg"], f"{name}_real_from": source}
    dataset = opts.dataset()
    items = np.unique(np.linspace(0, len(dataset) - 1, REALS).astype(np.int64))
    stats = metric_utils.compute_feature_stats_for_dataset(opts, *POSE, index=items, capture_all=True)
    labels = torch.from_numpy(np.stack([dataset.get_label(int(item)) for item in items]))
    mean = float(angles_deg(unit(stats.get_all_torch()).numpy(), viewing_directions(labels).numpy()).mean())
    source = f"{len(items)} images of {dataset.name}, on which the regressor may have been trained"
    return {f"{name}_real": mean, f"{name}_real_from": source}


def real_consistency(opts: MetricOptions, name: str) -> dict:
    """Similarity and ratio of real views of held-out scenes, from the embedding's file; {} if it lacks them."""
    metadata = read_metadata(opts.detector(*SCENE).extra.get(METADATA, ""))
    if "held_out_within" not in metadata or "held_out_between" not in metadata:
        return {}
    within, between = metadata["held_out_within"], metadata["held_out_between"]
    return {f"{name}_real": within, f"{name}_real_ratio": distance_ratio(within, between)}
