"""Time of the Fréchet distance through symmetric eigenvalues against scipy.linalg.sqrtm, on random covariances: seconds of processor time.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/bench_frechet.py --csv=benchmarks/frechet.csv
"""

from __future__ import annotations

import time

import click
import numpy as np
import scipy
import scipy.linalg
import torch
from results import save_rows

from metrics.frechet_inception_distance import frechet_distance


def sqrtm_distance(mu_gen: np.ndarray, sigma_gen: np.ndarray, mu_real: np.ndarray, sigma_real: np.ndarray) -> float:
    """The same number with the root of the product as a matrix."""
    root = scipy.linalg.sqrtm(sigma_gen @ sigma_real)
    return float(np.square(mu_gen - mu_real).sum() + np.trace(sigma_gen + sigma_real - 2 * root).real)


def timed(function, *args) -> tuple[float, float]:
    """(seconds, result)."""
    begin = time.process_time()
    result = function(*args)
    return time.process_time() - begin, result


@click.command()
@click.option("--features", default="256,2048", show_default=True, help="Sizes to measure", metavar="A,B")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(features: str, csv_path: str | None) -> None:
    """Print a row per number of features."""
    rows = []
    for size in map(int, features.split(",")):
        rng = np.random.RandomState(0)
        mu = rng.randn(2, size)
        factors = rng.randn(2, 3 * size, size)
        covariances = [f.T @ f / len(f) for f in factors]
        args = mu[0], covariances[0], mu[1], covariances[1]
        ours, distance = timed(frechet_distance, *args)
        theirs, expected = timed(sqrtm_distance, *args)
        rows.append(dict(features=size, eigenvalues_s=f"{ours:.3f}", sqrtm_s=f"{theirs:.3f}", ratio=f"{theirs / ours:.1f}",
                         relative_difference=f"{abs(distance / expected - 1):.1e}", threads=torch.get_num_threads(),
                         numpy=np.__version__, scipy=scipy.__version__))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if csv_path is not None:
        save_rows(csv_path, rows)


if __name__ == "__main__":
    main()
