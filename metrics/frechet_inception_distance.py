"""Fréchet Inception distance (Heusel et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch

from metrics.metric_utils import MetricOptions, compute_feature_stats_for_dataset, compute_feature_stats_for_generator


def frechet_distance(mu_gen: np.ndarray, sigma_gen: np.ndarray, mu_real: np.ndarray, sigma_real: np.ndarray) -> float:
    """Squared Fréchet distance of normal distributions with means [D], covariances [D, D] (Dowson and Landau 1982):

        |mu_gen - mu_real|^2 + tr(sigma_gen) + tr(sigma_real) - 2 tr((sigma_gen sigma_real)^1/2)

    With A A^T = sigma_gen the product has the eigenvalues of A^T sigma_real A, which is symmetric and positive
    semidefinite: the trace is the sum of their roots. Symmetric eigenvalues are real, and accurate for singular
    covariances too.
    """
    arrays = [np.asarray(array, dtype=np.float64) for array in (mu_gen, sigma_gen, mu_real, sigma_real)]
    mu_gen, sigma_gen, mu_real, sigma_real = arrays
    shapes = [array.shape for array in arrays]
    assert mu_gen.shape == mu_real.shape and sigma_gen.shape == sigma_real.shape == 2 * mu_gen.shape, shapes
    if not all(np.isfinite(array).all() for array in arrays):
        return float("nan")
    A = _factor(sigma_gen)
    # Here torch's BLAS and LAPACK take half the time of numpy's.
    shared = torch.linalg.eigvalsh(A.T @ torch.from_numpy(sigma_real) @ A)
    trace_of_root = float(shared.clamp(min=0).sqrt().sum())
    distance = np.square(mu_gen - mu_real).sum() + np.trace(sigma_gen) + np.trace(sigma_real) - 2 * trace_of_root
    return float(max(distance, 0))


def _factor(sigma: np.ndarray) -> torch.Tensor:
    """A [D, rank] with A A^T = sigma."""
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(sigma))
    if info == 0:
        return factor
    # Singular, as with fewer images than features: Cholesky with pivoting stops at the rank.
    import scipy.linalg.lapack  # slow to import
    tolerance = 4 * np.finfo(np.float64).eps * sigma.diagonal().max()
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma, tol=tolerance, lower=1)
    rows = np.zeros([len(sigma), rank])
    rows[pivots - 1] = np.tril(packed)[:, :rank]
    return torch.from_numpy(rows)


def compute_fid(opts: MetricOptions, max_real: int | None, num_gen: int) -> float:
    """FID between `num_gen` generated images and the first `max_real` real ones (None: all)."""
    real = compute_feature_stats_for_dataset(opts, "inception", max_items=max_real, capture_mean_cov=True)
    gen = compute_feature_stats_for_generator(opts, "inception", max_items=num_gen, capture_mean_cov=True)
    return frechet_distance(*gen.get_mean_cov(), *real.get_mean_cov())


def fid_full(opts: MetricOptions) -> dict:
    """Against all real images, not mirrored."""
    return {opts.metric: compute_fid(opts.unmirrored(), max_real=None, num_gen=opts.num_samples)}


def fid(opts: MetricOptions) -> dict:
    """Against as many real images as generated ones."""
    return {opts.metric: compute_fid(opts, max_real=opts.num_samples, num_gen=opts.num_samples)}
