"""`FeatureStats`: features of many images, or their mean and covariance; and those of real images on disk.

The cache lets only the first evaluation read a whole data set. Its key is a hash of everything that the statistics
depend on: the data, the detector, the resolution, the options.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import make_cache_dir_path, open_whole
from metrics.detectors.dataset import data_hash, digest

FORMAT = 3                               # raise it when the same key comes to mean other numbers
# Arguments of a data set that are not part of the key: the hash, the items and the image shape say more.
NOT_IN_KEY = ("path", "use_labels", "max_size", "random_seed", "resolution", "num_channels")


@dataclass
class FeatureStats:
    """Appended features: their rows (capture_all), their moments (capture_mean_cov), or both. Name as in StyleGAN3."""

    capture_all:        bool = False
    capture_mean_cov:   bool = False
    max_items:          int | None = None               # Rows beyond these are dropped. None: no limit.
    count:              int = 0                         # Rows appended.
    total:              np.ndarray | None = None        # Their sum [D], float64; None before the first.
    outer:              np.ndarray | None = None        # Sum of their outer products [D, D], float64.
    rows:               list[np.ndarray] = field(default_factory=list)      # float32 [B, D] each.

    def append(self, features: np.ndarray | Tensor) -> None:
        """features: [B, D]."""
        rows = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
        assert rows.ndim == 2, rows.shape
        if self.max_items is not None:
            rows = rows[: max(self.max_items - self.count, 0)]
        self.count += len(rows)
        if self.capture_all:
            self.rows.append(rows.astype(np.float32))
        if self.capture_mean_cov:
            rows = rows.astype(np.float64)
            self.total = rows.sum(axis=0) + (0 if self.total is None else self.total)
            self.outer = rows.T @ rows + (0 if self.outer is None else self.outer)

    def append_torch(self, x: Tensor, num_gpus: int = 1, rank: int = 0) -> None:
        """Appends x [B, D] of all ranks: first row 0 of each rank, then row 1 of each. All ranks call it."""
        if num_gpus > 1:
            parts = [torch.empty_like(x) for _ in range(num_gpus)]
            torch.distributed.all_gather(parts, x.contiguous())
            x = torch.stack(parts, dim=1).flatten(0, 1)
        self.append(x)

    def is_full(self) -> bool:
        return self.max_items is not None and self.count >= self.max_items

    @property
    def num_items(self) -> int:
        return self.count

    @property
    def num_features(self) -> int | None:
        """D; None before the first row."""
        return len(self.total) if self.total is not None else self.rows[0].shape[1] if self.rows else None

    def get_all_torch(self) -> Tensor:
        return torch.from_numpy(self.get_all())

    def get_all(self) -> np.ndarray:
        """float32 [N, D], in the order in which they were appended."""
        assert self.capture_all and self.rows, "no rows were kept"
        self.rows = [np.concatenate(self.rows)]
        return self.rows[0]

    def get_mean_cov(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and covariance [D, D], E[x x^T] - E[x] E[x]^T, in float64."""
        assert self.capture_mean_cov and self.count > 0, "no moments were summed"
        mean = self.total / self.count
        return mean, self.outer / self.count - np.outer(mean, mean)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """The content of a file."""
        arrays = dict(count=np.array(self.count))
        if self.capture_all:
            arrays.update(rows=self.get_all())
        if self.capture_mean_cov:
            arrays.update(total=self.total, outer=self.outer)
        return arrays

    def take_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes over what `as_arrays` returned. Raises KeyError or ValueError for arrays of other statistics."""
        count = int(arrays["count"])
        if self.capture_all:
            rows = arrays["rows"]
            if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != count:
                raise ValueError(f"rows {rows.shape} of {rows.dtype}, expected {count}")
            self.rows = [rows]
        if self.capture_mean_cov:
            total, outer = arrays["total"], arrays["outer"]
            if outer.shape != 2 * total.shape or not (np.isfinite(total).all() and np.isfinite(outer).all()):
                raise ValueError(f"moments {total.shape} and {outer.shape}, expected finite ones [D] and [D, D]")
            self.total, self.outer = total, outer
        self.count = count

    def save(self, path: str) -> None:
        """Writes a numpy archive, which is not a pickle. A failure leaves no partial file."""
        with open_whole(path) as stream:
            np.savez(stream, **self.as_arrays())

    @staticmethod
    def load(path: str) -> FeatureStats:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stats = FeatureStats(capture_all="rows" in arrays, capture_mean_cov="total" in arrays)
        stats.take_arrays(arrays)
        return stats


def cached_path(dataset_kwargs: dict, image_shape: list[int], detector_sha256: str, stem: str, call: dict,
                items: np.ndarray, stats: FeatureStats) -> str | None:
    """The file for the statistics of these items of a data set. None: data of a class without a path are not cached.

    stem: beginning of the file's name; call: keywords of the detector's call; stats: says what is captured.
    """
    if "path" not in dataset_kwargs:
        return None
    options = {"xflip": False, **{name: value for name, value in dataset_kwargs.items() if name not in NOT_IN_KEY}}
    key = digest([FORMAT, data_hash(dataset_kwargs), sorted(options.items()), list(image_shape), detector_sha256,
                  sorted(call.items()), hashlib.sha256(items.tobytes()).hexdigest(), stats.capture_all,
                  stats.capture_mean_cov])
    return make_cache_dir_path("metrics", f"{stem}-{key[:40]}.npz")


def read_cache(path: str, stats: FeatureStats) -> bool:
    """Fills `stats` from the file. False if it is missing, or damaged, which is printed."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            stats.take_arrays({name: archive[name] for name in archive.files})
        return True
    except FileNotFoundError:
        return False
    except Exception as error:           # numpy and zipfile raise many kinds about a damaged file
        print(f"{path}: a damaged cache file ({type(error).__name__}); its statistics are computed again")
        return False


def write_cache(path: str, stats: FeatureStats) -> None:
    """Writes the file. If that fails, says so: a cache that cannot be written costs time, but not the result."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        stats.save(path)
    except OSError as error:
        print(f"{path}: cannot keep the statistics of the real images ({error.strerror or error}); they will be "
              "computed again next time")
