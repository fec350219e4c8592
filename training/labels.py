"""The labels of a data set in memory: what kind they are, and what of them goes with an item."""

from __future__ import annotations

import functools

import numpy as np

import camera_utils


class Labels:
    """One label per image: float32 [N, D], or class numbers int64 [N], which become one-hot vectors. [N, 0]: no labels.

    Labels of 25 numbers are cameras: that of a mirrored image is the mirrored camera. Other labels do not change in a mirror.
    """

    def __init__(self, raw: np.ndarray):
        assert (raw.dtype, raw.ndim) in ((np.float32, 2), (np.int64, 1)), (raw.dtype, raw.shape)
        self.raw = raw
        self.are_classes = raw.ndim == 1
        self.dim = 1 + int(raw.max()) if self.are_classes else raw.shape[1]
        self.are_cameras = not self.are_classes and self.dim == camera_utils.LABEL_DIM

    @functools.cached_property
    def mirrored(self) -> np.ndarray:
        """Of each camera the mirror image, float32 [N, 25]."""
        assert self.are_cameras, self.describe()
        return camera_utils.Camera.from_label(self.raw).mirror().to_label().numpy()

    def encoded(self, raw_idx: int, mirrored: bool = False) -> np.ndarray:
        """The label that networks get with image `raw_idx`, or with its mirror image: float32 [dim], the caller's to change."""
        if self.are_classes:
            return (np.arange(self.dim) == self.raw[raw_idx]).astype(np.float32)
        table = self.mirrored if mirrored and self.are_cameras else self.raw
        return table[raw_idx].copy()

    def describe(self) -> str:
        if self.are_classes:
            return "the labels are class numbers"
        return f"the labels have {self.dim} numbers" if self.dim else "no labels are in use"
