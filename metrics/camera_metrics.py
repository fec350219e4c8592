"""How well a network obeys its camera (pose_error) and its latent (view_consistency): two names of one computation.

One without the other says little: a network that ignores its camera is perfectly consistent, one that ignores its latent is free to have a
small pose error. So either name computes both, on the same images, and every result holds both.

The images come in groups of VIEWS latents, each from the group's VIEWS cameras, which are drawn from the data set's labels. Layer noise is
drawn anew for each image: what stays the same within a latent is due to the latent.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dnnlib.util import UserError
from metrics.directions import angles_deg, compare_directions, turns
from metrics.features import compute_feature_stats_for_dataset
from metrics.metric_main import Request
from metrics.options import MetricOptions
from metrics.pose_regressor import viewing_directions
from metrics.samples import Batch, gather_rows, generated_images, iterate, rng
from metrics.similarities import compare_pairs, distance_ratio
from metrics.small_network import METADATA, read_metadata

VIEWS = 4                                # latents in a group, and cameras of each
GROUP = VIEWS * VIEWS                    # images in a group
MIN_SAMPLES = 4 * GROUP
USUAL_SAMPLES = 10000
REALS = 1000                             # real images to judge a regressor on whose file does not say its error
POSE, SCENE = ("pose_regressor", "features"), ("embedding", "features")


# ---------------------------------------------------------------------------------------------------------------------
# The images.

def layout(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of images [N] -> the numbers of their latents, cameras and groups, [N] each. Image i and i + 1 mostly share the latent."""
    group = index // GROUP
    return index // VIEWS, group * VIEWS + index % VIEWS, group


def camera_items(seed: int, group: int, num_items: int) -> np.ndarray:
    """The items of the data set [VIEWS] whose labels are the cameras of that group, all different where there are enough."""
    return rng(seed, "views/cameras", group).choice(num_items, VIEWS, replace=num_items < VIEWS)


def iterate_views(opts: MetricOptions, num_samples: int) -> Iterator[Batch]:
    """This rank's share of images 0 .. num_samples - 1."""
    num_items = len(opts.dataset())

    def choose(i: int) -> tuple[np.ndarray, int]:
        latent, camera, group = (int(number) for number in layout(np.array(i)))
        z = rng(opts.seed, "views", latent).standard_normal(opts.G.z_dim, dtype=np.float32)
        return z, camera_items(opts.seed, group, num_items)[camera % VIEWS]

    return iterate(opts, num_samples, "views", choose)


def look_at_views(opts: MetricOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the images: the directions asked for [N, 3], those recovered [N, 3], and the embeddings [N, D]. On all ranks."""
    regressor, embedding = opts.detector(*POSE), opts.detector(*SCENE)
    rows, index = [], []
    for batch, images in generated_images(opts, iterate_views(opts, opts.num_samples), opts.num_samples, "views"):
        rows.append(torch.cat([viewing_directions(batch.c).float(), unit(regressor(images)), embedding(images)], dim=1))
        index.append(batch.index)
    table = gather_rows(opts, rows, index, opts.num_samples)
    return table[:, :3], table[:, 3:6], table[:, 6:]


def unit(directions: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(directions, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# The two metrics.

def check_views(opts: MetricOptions, request: Request) -> None:
    """Enough images for pairs of both kinds; both detectors at hand: neither number is computed where the other cannot be."""
    if request.num_samples < MIN_SAMPLES:
        raise UserError(f"{request.num_samples} images, expected {MIN_SAMPLES} or more (groups of {VIEWS} latents from {VIEWS} "
                        f"cameras); give --samples={MIN_SAMPLES}")
    for kind, use in (POSE, SCENE):
        try:
            opts.detector_path(kind, use)
        except UserError as error:
            raise UserError(f"pose_error and view_consistency are computed and shown together, and {error.message}") from error


# Of both rows in the table of metrics.
ROW = dict(samples=USUAL_SAMPLES, count_optional=True, detectors=(POSE, SCENE), needs=("generator", "cameras"), check=check_views, shared="camera")


def camera_metrics(opts: MetricOptions) -> dict:
    """Angles in degrees. docs/metrics.md says what each number is."""
    count = opts.metric.removeprefix("pose_error").removeprefix("view_consistency")
    requested, recovered, embedding = look_at_views(opts)
    pose = compare_directions(requested, recovered)
    views = compare_pairs(embedding, *layout(np.arange(opts.num_samples)))
    error, consistency = f"pose_error{count}", f"view_consistency{count}"
    return {
        error: pose["mean"], f"{error}_median": pose["median"], **real_error(opts, error), f"{error}_chance": pose["chance"],
        f"{error}_shuffled": pose["shuffled"],
        **{f"{error}_{name}": value for name, value in turns(requested, recovered, opts.dataset().camera_stats()["up"]).items()},
        consistency: views["within"], f"{consistency}_between": views["between"], f"{consistency}_ratio": views["ratio"],
        **real_consistency(opts, consistency),
    }


def real_error(opts: MetricOptions, name: str) -> dict:
    """The regressor's own error [deg] on held-out real images, from its file; where that does not say, on images of the data set."""
    metadata = read_metadata(opts.detector(*POSE).extra.get(METADATA, ""))
    if "held_out_mean_deg" in metadata:
        return {f"{name}_real": metadata["held_out_mean_deg"], f"{name}_real_from": f"images of {metadata.get('data')} held out from the regressor's training"}
    dataset = opts.dataset()
    items = np.unique(np.linspace(0, len(dataset) - 1, REALS).astype(np.int64))
    found = unit(torch.from_numpy(compute_feature_stats_for_dataset(opts, *POSE, index=items, capture_all=True).get_all())).numpy()
    truth = viewing_directions(torch.from_numpy(np.stack([dataset.get_label(int(item)) for item in items]))).numpy()
    mean = float(angles_deg(found, truth).mean())
    return {f"{name}_real": mean, f"{name}_real_from": f"{len(items)} images of {dataset.name}, on which the regressor may have been trained"}


def real_consistency(opts: MetricOptions, name: str) -> dict:
    """Similarity and ratio of real views of scenes that were held out from the embedding's training; {} where its file does not say."""
    metadata = read_metadata(opts.detector(*SCENE).extra.get(METADATA, ""))
    if "held_out_within" not in metadata or "held_out_between" not in metadata:
        return {}
    within, between = metadata["held_out_within"], metadata["held_out_between"]
    return {f"{name}_real": within, f"{name}_real_ratio": distance_ratio(within, between)}
