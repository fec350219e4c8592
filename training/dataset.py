"""Image data sets with labels: EG3D's zips and folders.

A data set is a folder or a zip of images, and, where it is labelled, a dataset.json. `ImageFolderDataset` reads both unchanged.
Labels of 25 numbers are cameras, and follow when the image is mirrored.
"""

from __future__ import annotations

import os

import numpy as np
import torch

import camera_utils
from dnnlib import EasyDict
from training import image_decoding
from training.dataset_labels import LABEL_FILE, read_labels
from training.image_files import DataError, open_files
from training.image_scan import broken_image, image_names, scan


class Dataset(torch.utils.data.Dataset):
    """What every data set does: choose images, mirror them, encode labels. A subclass says where raw images and labels come from.

    Item i is (image, label): uint8 [C, H, W] and float32 [label_dim], both the caller's to change.
    """

    def __init__(self,
        name,                       # Short name, for folders and logs.
        raw_shape,                  # [N, C, H, W] of all images there are.
        max_size        = None,     # Use a random choice of that many images, None = all. Chosen before mirroring.
        use_labels      = False,    # False = labels of no numbers.
        xflip           = False,    # Append a mirrored copy of each image.
        random_seed     = 0,        # Of the choice that max_size makes.
    ):
        self._name = name
        self._raw_shape = [int(size) for size in raw_shape]
        self._use_labels = use_labels
        self._raw_labels = None
        self._mirrored_cameras = None
        self.notes: list[str] = []
        assert len(self._raw_shape) == 4 and (max_size is None or max_size > 0), (raw_shape, max_size)

        self._raw_idx = np.arange(self._raw_shape[0], dtype=np.int64)
        if max_size is not None and max_size < len(self._raw_idx):
            np.random.RandomState(random_seed % 2**31).shuffle(self._raw_idx)
            self._raw_idx = np.sort(self._raw_idx[:max_size])
        self._xflip = np.zeros(len(self._raw_idx), dtype=bool)
        if xflip:
            self._raw_idx = np.concatenate([self._raw_idx, self._raw_idx])
            self._xflip = np.concatenate([self._xflip, ~self._xflip])

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        """Image `raw_idx`, uint8 [C, H, W]. For subclasses."""
        raise NotImplementedError

    def _load_raw_labels(self) -> np.ndarray | None:
        """All labels, float32 [N, D] or class numbers int64 [N], None = there are none. For subclasses."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes files; they open again when read again."""

    # --- items

    def __len__(self) -> int:
        return len(self._raw_idx)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        image = self._load_raw_image(int(self._raw_idx[idx]))
        assert image.dtype == np.uint8 and list(image.shape) == self.image_shape, (image.dtype, image.shape)
        return np.array(image[:, :, ::-1] if self._xflip[idx] else image, order="C"), self.get_label(idx)

    def get_label(self, idx: int) -> np.ndarray:
        """Label of item `idx`, float32 [label_dim]; of a mirrored image the mirrored camera, if it is one."""
        raw_idx = self._raw_idx[idx]
        if self._xflip[idx] and self.has_camera_labels:
            return self._get_mirrored_cameras()[raw_idx].copy()
        label = self._get_raw_labels()[raw_idx]
        if not self.has_onehot_labels:
            return label.copy()
        return np.eye(1, self.label_dim, k=int(label), dtype=np.float32)[0]

    def get_details(self, idx: int) -> EasyDict:
        """Where item `idx` comes from: raw_idx, xflip, and raw_label as it is stored."""
        raw_idx = int(self._raw_idx[idx])
        return EasyDict(raw_idx=raw_idx, xflip=bool(self._xflip[idx]), raw_label=self._get_raw_labels()[raw_idx].copy())

    # --- what the items are like

    @property
    def name(self) -> str:
        return self._name

    @property
    def image_shape(self) -> list[int]:
        """[C, H, W]."""
        return list(self._raw_shape[1:])

    @property
    def num_channels(self) -> int:
        return self.image_shape[0]

    @property
    def resolution(self) -> int:
        """Width and height. Raises DataError where they differ."""
        _, height, width = self.image_shape
        if height != width:
            raise DataError(f"--data={self._source}: the images are {width} wide and {height} high, expected squares; crop or pad them first")
        return width

    def check_resolution(self) -> int:
        """The resolution, if networks can be built for it: a power of two, 4 or more. Else DataError."""
        size = self.resolution
        if size < 4 or size & (size - 1):
            below = 1 << max(size.bit_length() - 1, 2)
            raise DataError(f"--data={self._source}: the images are {size} wide and high, expected a power of two; resize them first, "
                            f"to {below} for example")
        return size

    @property
    def label_shape(self) -> list[int]:
        """[D]; [number of classes] where the raw labels are class numbers."""
        labels = self._get_raw_labels()
        return [int(labels.max()) + 1] if self.has_onehot_labels else list(labels.shape[1:])

    @property
    def label_dim(self) -> int:
        shape = self.label_shape
        assert len(shape) == 1, shape
        return shape[0]

    @property
    def has_labels(self) -> bool:
        return any(size > 0 for size in self.label_shape)

    @property
    def has_onehot_labels(self) -> bool:
        return self._get_raw_labels().dtype == np.int64

    @property
    def has_camera_labels(self) -> bool:
        """Are the labels 25 numbers each?"""
        labels = self._get_raw_labels()
        return labels.dtype == np.float32 and labels.shape[1:] == (camera_utils.LABEL_DIM,)

    # --- cameras

    def check_cameras(self, allow_geometry: bool = False) -> list[str]:
        """Judges the cameras in the labels. Raises DataError naming file, image, and the likely mistake; returns remarks for the log.

        With `allow_geometry`, what only looks wrong from where the cameras stand is let pass.
        """
        if not self.has_camera_labels:
            raise DataError(f"--data={self._source}: {self._describe_labels()}, expected cameras, {camera_utils.LABEL_DIM} numbers per image, in "
                f"{LABEL_FILE}: cam2world (4x4, row by row), then intrinsics (3x3, in units of the image size); for other labels use --cfg=stylegan2")
        chosen = self._raw_idx[~self._xflip]
        try:
            return camera_utils.check_camera_labels(self._get_raw_labels()[chosen], [self._raw_name(index) for index in chosen],
                                                    allow_geometry=allow_geometry)
        except ValueError as error:
            raise DataError(f"--data={self._source}: {error}") from error

    def camera_stats(self) -> dict:
        """Plain numbers that describe the cameras of all items, mirrored ones included: what a snapshot carries."""
        assert self.has_camera_labels, self._describe_labels()
        labels = self._get_raw_labels()[self._raw_idx]
        if self._xflip.any():
            labels[self._xflip] = self._get_mirrored_cameras()[self._raw_idx[self._xflip]]
        return camera_utils.camera_stats(labels)

    # --- inside

    @property
    def _source(self) -> str:
        """How messages call the data set."""
        return self._name

    def _raw_name(self, raw_idx: int) -> str:
        """How messages call an image."""
        return f"image {raw_idx}"

    def _get_raw_labels(self) -> np.ndarray:
        """float32 [N, D] or int64 [N]; without labels [N, 0]."""
        if self._raw_labels is None:
            labels = self._load_raw_labels() if self._use_labels else None
            labels = np.zeros([self._raw_shape[0], 0], dtype=np.float32) if labels is None else labels
            assert len(labels) == self._raw_shape[0] and (labels.dtype, labels.ndim) in ((np.float32, 2), (np.int64, 1)), (labels.shape, labels.dtype)
            self._raw_labels = labels
        return self._raw_labels

    def _get_mirrored_cameras(self) -> np.ndarray:
        """float32 [N, 25]."""
        if self._mirrored_cameras is None:
            self._mirrored_cameras = camera_utils.Camera.from_label(self._get_raw_labels()).mirror().to_label().numpy()
        return self._mirrored_cameras

    def _describe_labels(self) -> str:
        if not self.has_labels:
            return "no labels are in use"
        return "the labels are class numbers" if self.has_onehot_labels else f"the labels have {self.label_dim} numbers"


class ImageFolderDataset(Dataset):
    """The images in a folder (with those below it) or a zip, in the order of their names.

    Any format that Pillow opens. All grey: one channel; else RGB, and `notes` counts what was converted (alpha is dropped, 16-bit values keep
    their high byte). Reading is safe in threads, forked and spawned workers. Raises DataError, one line, for whatever is wrong with the files.
    """

    def __init__(self,
        path,                       # Folder or zip.
        resolution      = None,     # Expected width and height, None = that of the images.
        num_channels    = None,     # 1 or 3 where it is known; with `resolution` this spares looking at every image. None = look.
        **super_kwargs,             # Further arguments of Dataset.
    ):
        assert num_channels in (None, 1, 3), num_channels
        self._path = os.fspath(path)
        self._files = open_files(self._path)
        self._image_names = image_names(self._files.names)
        if not self._image_names:
            raise DataError(f"--data={self._path}: {len(self._files.names)} files, none of them an image; expected PNG, JPEG or the like")
        if resolution is not None and num_channels is not None:
            shape, notes = (num_channels, resolution, resolution), []
        else:
            shape, notes = scan(self._files, self._image_names, num_channels)
        if resolution is not None and shape[1:] != (resolution, resolution):
            raise DataError(f"--data={self._path}: the images are {shape[2]} wide and {shape[1]} high, but --resolution={resolution}; "
                            "resize the images, or leave the resolution to the data")
        name = os.path.splitext(os.path.basename(os.path.abspath(self._path)))[0]
        super().__init__(name=name, raw_shape=[len(self._image_names), *shape], **super_kwargs)
        self.notes += notes
        self._get_raw_labels()      # so that bad labels are found now

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        name = self._image_names[raw_idx]
        data = self._files.read(name)
        try:
            pixels = image_decoding.decode(data)
        except Exception as error:  # decoders raise whatever they like
            raise broken_image(self._files, name, error) from error
        channels, height, width = self.image_shape
        if pixels.shape[:2] != (height, width):
            raise DataError(f"{self._files.locate(name)}: {pixels.shape[1]} wide, {pixels.shape[0]} high, expected {width} wide, {height} high; "
                            "resize or crop it first")
        if pixels.shape[2] > channels:
            raise DataError(f"{self._files.locate(name)}: in colour, expected grey like the rest; convert it, or ask for 3 channels")
        return np.broadcast_to(pixels, (height, width, channels)).transpose(2, 0, 1)

    def _load_raw_labels(self) -> np.ndarray:
        labels, notes = read_labels(self._files, self._image_names)
        self.notes += notes
        return labels

    @property
    def _source(self) -> str:
        return self._path

    def _raw_name(self, raw_idx: int) -> str:
        return self._image_names[raw_idx]

    def close(self) -> None:
        self._files.close()
