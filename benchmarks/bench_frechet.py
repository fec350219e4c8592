"""The Fréchet distance by symmetric eigenvalues against scipy.linalg.sqrtm, on random covariances: processor time.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/bench_frechet.py --csv=benchmarks/frechet.csv
"""

from __future__ import annotations

import time

import click
import numpy as np
import results
import scipy.linalg
import torch

from metrics.frechet_inception_distance import frechet_distance


def sqrtm_distance(mu_gen: np.ndarray, sigma_gen: np.ndarray, mu_real: np.ndarray, sigma_real: np.ndarray) -> float:
    """The same number with the root of the product as a matrix."""
    root = scipy.linalg.sqrtm(sigma_gen @ sigma_real)
    return float(np.square(mu_gen - mu_real).sum() + np.trace(sigma_gen + sigma_real - 2 * root).real)


@click.command()
@click.option("--features", default="256,2048", show_default=True, help="Sizes to measure", metavar="A,B")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(features: str, csv_path: str | None) -> None:
    """Print a row per number of features."""
    for size in map(int, features.split(",")):
        rng = np.random.RandomState(0)
        mu, factors = rng.randn(2, size), rng.randn(2, 3 * size, size)
        covariances = [f.T @ f / len(f) for f in factors]
        seconds, distances = [], []
        for distance in (frechet_distance, sqrtm_distance):
            begin = time.process_time()
            distances.append(distance(mu[0], covariances[0], mu[1], covariances[1]))
            seconds.append(time.process_time() - begin)
        results.keep(csv_path, dict(
            features=size, eigenvalues_s=f"{seconds[0]:.3f}", sqrtm_s=f"{seconds[1]:.3f}",
            ratio=f"{seconds[1] / seconds[0]:.1f}", relative_difference=f"{abs(distances[0] / distances[1] - 1):.1e}",
            threads=torch.get_num_threads(), numpy=np.__version__, scipy=scipy.__version__))


if __name__ == "__main__":
    main()
