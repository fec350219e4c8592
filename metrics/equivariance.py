"""Equivariance of StyleGAN3's networks (Karras et al. 2021, section 3 and appendix E): does the image move as its input is moved?

EQ-T and EQ-R are the PSNR [dB] of an image made with a moved input against the image that was moved itself, dynamic range -1 .. 1. A network that
sees pinhole rays is shown those of a camera that moves along; rays in the published convention fit no camera, so they are left as they are, and the
result says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

import camera_utils
from dnnlib.util import UserError
from metrics.image_motion import (
    apply_fractional_pseudo_rotation,
    apply_fractional_rotation,
    apply_fractional_translation,
    apply_integer_translation,
)
from metrics.metric_main import Request, register_metric
from metrics.options import MetricOptions
from metrics.samples import count_broken, iterate_samples, rng, sum_over_ranks

__all__ = ["apply_fractional_pseudo_rotation", "apply_fractional_rotation", "apply_fractional_translation", "apply_integer_translation",
           "compute_equivariance", "move_cameras", "rotation_of", "translation_of"]

MAX_SHIFT = 0.125                        # of the image width
MIN_RESOLUTION = 16                      # below it rotation filters leave no pixel to compare


# ---------------------------------------------------------------------------------------------------------------------
# Motions: matrices [3, 3] float64 that take a point (x, y, 1) of the moved image, in image widths from the centre, to the one that it shows.

def translation_of(tx: float, ty: float) -> torch.Tensor:
    """Of an image that moves to the right by tx and down by ty."""
    return torch.tensor([[1, 0, -tx], [0, 1, -ty], [0, 0, 1]], dtype=torch.float64)


def rotation_of(angle: float) -> torch.Tensor:
    """Of an image that turns as `apply_fractional_rotation` turns it [rad]."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def move_cameras(c: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """Camera labels [N, 25] of the moved image: its rays at p are the old ones at motion p.

    K_new = A K, A being the inverse motion in image coordinates. A K = K_new Q with a triangular K_new and Q a turn about the optical axis: the principal
    point moves as the image does, and the camera rolls by Q^T.
    """
    camera = camera_utils.Camera.from_label(c.double())
    centre = translation_of(-0.5, -0.5)                                     # from the centre to image coordinates
    A = (centre @ motion.inverse() @ centre.inverse()).to(c.device)
    lens = A @ camera.intrinsics                                            # [N, 3, 3]
    top, bottom = lens[:, 0, :2], lens[:, 1, :2]
    length = bottom.norm(dim=1, keepdim=True)
    second = bottom / length                                                # rows of Q
    first = torch.stack([second[:, 1], -second[:, 0]], dim=1)
    K = camera.intrinsics.clone()
    K[:, 0, 0], K[:, 0, 1], K[:, 1, 1] = (top * first).sum(dim=1), (top * second).sum(dim=1), length[:, 0]
    K[:, :2, 2] = lens[:, :2, 2]
    cam2world = camera.cam2world.clone()
    cam2world[:, :3, :2] = camera.cam2world[:, :3, :2] @ torch.stack([first, second], dim=1).mT
    return camera_utils.Camera(cam2world, K).to_label().to(c.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# What is compared: (motion, compare), where compare(base, moved) -> (difference, mask).

Comparison = tuple[torch.Tensor, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]


def integer_translation(draw: np.random.Generator, resolution: int) -> Comparison:
    """By whole pixels."""
    tx, ty = np.rint(draw.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * resolution) / resolution
    return translation_of(tx, ty), lambda base, moved: _against(apply_integer_translation(base, tx, ty), moved)


def fractional_translation(draw: np.random.Generator, resolution: int) -> Comparison:
    tx, ty = draw.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    return translation_of(tx, ty), lambda base, moved: _against(apply_fractional_translation(base, tx, ty), moved)


def fractional_rotation(draw: np.random.Generator, resolution: int) -> Comparison:
    """By any angle. The moved image goes through the filter that turning the other one entails."""
    angle = draw.uniform(-math.pi, math.pi)

    def compare(base: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        filtered, mask = apply_fractional_pseudo_rotation(moved, angle)
        difference, also = _against(apply_fractional_rotation(base, angle), filtered)
        return difference, mask * also

    return rotation_of(angle), compare


def _against(expected: tuple[torch.Tensor, torch.Tensor], moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    image, mask = expected
    return image - moved, mask


def compute_equivariance(opts: MetricOptions, choose: Callable[[np.random.Generator, int], Comparison]) -> dict:
    """PSNR over opts.num_samples images. Each pass has one motion, as the networks have one transform."""
    G = opts.G
    transform = G.synthesis.input.transform
    saved = transform.clone()
    follows = getattr(G, "rays", None) == "pinhole"
    mapping_kwargs, synthesis_kwargs = opts.split_kwargs(noise_mode="const", force_fp32=True)
    sums = np.zeros([2])
    try:
        with opts.bar(opts.num_samples, "moved images") as bar:
            for batch in iterate_samples(opts, opts.num_samples):
                motion, compare = choose(rng(opts.seed, "motion", int(batch.index[0])), G.img_resolution)
                ws = G.mapping(batch.z, batch.c, **mapping_kwargs)
                images = []
                moved = move_cameras(batch.c, motion) if follows else batch.c
                for matrix, c in ((torch.eye(3, dtype=torch.float32), batch.c), (motion, moved)):
                    transform.copy_(matrix)
                    images.append(count_broken(opts, G.synthesis(ws, c, **synthesis_kwargs)).float())
                difference, mask = compare(*images)
                sums += [float((difference.square() * mask).double().sum()), float(mask.double().sum())]
                bar.update(len(batch.index) * opts.num_gpus)
    finally:
        transform.copy_(saved)
    squares, pixels = sum_over_ranks(opts, sums)
    result: dict = {opts.metric: psnr_db(squares / pixels)}
    if hasattr(G, "rays"):
        result[f"{opts.metric}_rays"] = "pinhole: the camera moved along with the image" if follows else f"{G.rays}: the image moved, its rays did not"
    return result


def psnr_db(mean_square: float) -> float:
    """Peak signal-to-noise ratio of images in -1 .. 1; of equal images 306 dB, nan where the mean is no number."""
    return 20 * math.log10(2) - 10 * math.log10(max(mean_square, 1e-30)) if math.isfinite(mean_square) else math.nan


def _check_resolution(opts: MetricOptions, request: Request) -> None:
    if opts.G.img_resolution < MIN_RESOLUTION:
        raise UserError(f"the network makes images of {opts.G.img_resolution} px, of which filters leave nothing to compare; "
                        f"it takes {MIN_RESOLUTION} px or more: leave the metric out")


ROW = dict(samples=50000, needs=("generator", "stylegan3"), reals=False, check=_check_resolution, unit="dB")


@register_metric(name="eqt{count}_int", **ROW)
def eqt_int(opts: MetricOptions) -> dict:
    return compute_equivariance(opts, integer_translation)


@register_metric(name="eqt{count}_frac", **ROW)
def eqt_frac(opts: MetricOptions) -> dict:
    return compute_equivariance(opts, fractional_translation)


@register_metric(name="eqr{count}", **ROW)
def eqr(opts: MetricOptions) -> dict:
    return compute_equivariance(opts, fractional_rotation)
