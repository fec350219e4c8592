"""Image data sets with labels: EG3D's zips and folders.

A data set is a folder or a zip of images, with a dataset.json if it has labels. `ImageFolderDataset` reads both as they
are. Labels of 25 numbers are cameras; a mirrored image has the mirrored camera.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import torch

import camera_utils
from dnnlib import EasyDict
from training.data.archives import LABEL_FILE, DataError, open_files
from training.data.images import broken_image, decode, list_images, scan
from training.data.labels import Labels, read_labels

ITEM = np.dtype([("raw_idx", np.int64), ("mirrored", np.bool_)])    # number of the image, and whether it is mirrored


def choose_items(num_images: int, max_size: int | None, xflip: bool, random_seed: int) -> np.ndarray:
    """The items of a data set in their order, ITEM [M]: the chosen images by number; with `xflip`, then all of them
    mirrored.

    Chooses `max_size` images as StyleGAN3 does with that seed.
    """
    chosen = np.arange(num_images)
    if max_size is not None and max_size < num_images:
        chosen = np.sort(np.random.RandomState(random_seed % 2**31).permutation(num_images)[:max_size])
    items = np.zeros([1 + bool(xflip), len(chosen)], dtype=ITEM)
    items["raw_idx"] = chosen
    items["mirrored"][1:] = True
    return items.ravel()


class Dataset(torch.utils.data.Dataset):
    """Chooses images, mirrors them and encodes labels. A subclass loads the raw images and labels.

    Item i is (image, label): uint8 [C, H, W] and float32 [label_dim]. The caller may change both.
    """

    def __init__(self,
        name,                       # Short name, for folders and logs.
        raw_shape,                  # [N, C, H, W] of all images.
        max_size        = None,     # Use a random choice of that many images, None = all. Chosen before mirroring.
        use_labels      = False,    # False = labels are empty.
        xflip           = False,    # Append a mirrored copy of each image.
        random_seed     = 0,        # Of the choice that max_size makes.
    ):
        assert len(raw_shape) == 4 and (max_size is None or max_size > 0), (raw_shape, max_size)
        self.name = name
        self.notes: list[str] = []
        self._num_images, *self._image_shape = map(int, raw_shape)
        self._use_labels = use_labels
        self._items = choose_items(self._num_images, max_size, xflip, random_seed)

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        """Image `raw_idx`, uint8 [C, H, W]. For subclasses."""
        raise NotImplementedError

    def _load_raw_labels(self) -> np.ndarray | None:
        """All labels, float32 [N, D] or class numbers int64 [N], None = no labels. For subclasses."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes files. They open again when they are read."""

    # --- items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        raw_idx, mirrored = self._items[idx].item()
        image = self._load_raw_image(raw_idx)
        assert image.dtype == np.uint8 and list(image.shape) == self._image_shape, (image.dtype, image.shape)
        image = np.array(np.flip(image, axis=2) if mirrored else image, order="C")
        return image, self._labels.encoded(raw_idx, mirrored)

    def get_label(self, idx: int) -> np.ndarray:
        """Label of item `idx`, float32 [label_dim]. Mirrored images have mirrored cameras."""
        return self._labels.encoded(*self._items[idx].item())

    def get_details(self, idx: int) -> EasyDict:
        """Where item `idx` comes from: raw_idx, xflip, and raw_label as stored."""
        raw_idx, mirrored = self._items[idx].item()
        return EasyDict(raw_idx=raw_idx, xflip=mirrored, raw_label=self._labels.raw[raw_idx].copy())

    # --- what the items are like

    @property
    def image_shape(self) -> list[int]:
        """[C, H, W]."""
        return list(self._image_shape)

    @property
    def num_channels(self) -> int:
        return self._image_shape[0]

    @property
    def resolution(self) -> int:
        """Width and height. Raises DataError if they differ."""
        _, height, width = self._image_shape
        if height != width:
            raise DataError(f"--data={self._source}: the images are {width} wide and {height} high, expected squares; "
                            "crop or pad them first")
        return width

    def check_resolution(self) -> int:
        """The resolution. Raises DataError unless networks can be built for it: a power of two, 4 or more."""
        size = self.resolution
        if size < 4 or size & (size - 1):
            below = 1 << max(size.bit_length() - 1, 2)
            raise DataError(f"--data={self._source}: the images are {size} wide and high, expected a power of two; "
                            f"resize them first, to {below} for example")
        return size

    @property
    def label_dim(self) -> int:
        """Length of an item's label; for class numbers, the number of classes."""
        return self._labels.dim

    @property
    def label_shape(self) -> list[int]:
        return [self.label_dim]

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        return self._labels.are_classes

    @property
    def has_camera_labels(self) -> bool:
        """Whether the labels are 25 numbers each."""
        return self._labels.are_cameras

    # --- cameras

    def check_cameras(self, allow_geometry: bool = False) -> list[str]:
        """Judges the cameras in the labels. Returns notes. Raises DataError that names the image and the mistake.

        allow_geometry: accept cameras whose positions and directions only look wrong.
        """
        if not self.has_camera_labels:
            raise DataError(f"--data={self._source}: {self._labels.describe()}, expected cameras, "
                            f"{camera_utils.LABEL_DIM} numbers per image, in {LABEL_FILE}: cam2world (4x4, row by "
                            "row), then intrinsics (3x3, in units of the image size); for other labels use "
                            "--cfg=stylegan2")
        chosen = self._items["raw_idx"][~self._items["mirrored"]]
        names = [self._raw_name(index) for index in chosen]
        try:
            return camera_utils.check_camera_labels(self._labels.raw[chosen], names, allow_geometry=allow_geometry)
        except ValueError as error:
            raise DataError(f"--data={self._source}: {error}") from error

    def camera_stats(self) -> dict:
        """Numbers that describe the cameras of all items, mirrored ones included. Snapshots hold them."""
        assert self.has_camera_labels, self._labels.describe()
        return camera_utils.camera_stats(np.stack([self.get_label(idx) for idx in range(len(self))]))

    # --- inside

    @functools.cached_property
    def _labels(self) -> Labels:
        """The labels of all images, chosen or not; read when first needed."""
        raw = self._load_raw_labels() if self._use_labels else None
        raw = np.zeros([self._num_images, 0], dtype=np.float32) if raw is None else raw
        assert len(raw) == self._num_images, (raw.shape, self._num_images)
        return Labels(raw)

    @property
    def _source(self) -> str:
        """How messages call the data set."""
        return self.name

    def _raw_name(self, raw_idx: int) -> str:
        """How messages call an image."""
        return f"image {raw_idx}"


class ImageFolderDataset(Dataset):
    """The images in a folder (with those below it) or a zip, in the order of their names (docs/conventions.md).

    Reads any format that Pillow opens, and turns images upright. They have one channel if all are grey, else they are
    RGB, and `notes` counts what is converted (alpha is dropped, 16-bit values keep their high byte). Threads, forked
    and spawned workers may read at the same time. Raises DataError, one line, if anything is wrong with the files.
    """

    def __init__(self,
        path,                       # Folder or zip.
        resolution      = None,     # Expected width and height, None = that of the images.
        num_channels    = None,     # 1 or 3, None = look. If `resolution` is given too, looks at no image.
        **super_kwargs,             # Further arguments of Dataset.
    ):
        assert num_channels in (None, 1, 3), num_channels
        self._path = os.fspath(path)
        self._files = open_files(self._path)
        self._image_names, notes = list_images(self._files)
        if not self._image_names:
            raise DataError(f"--data={self._path}: {len(self._files.names)} files, none of them an image; "
                            "expected PNG, JPEG or the like")
        if resolution is not None and num_channels is not None:
            shape, said = (num_channels, resolution, resolution), []
        else:
            shape, said = scan(self._files, self._image_names, num_channels)
        if resolution is not None and shape[1:] != (resolution, resolution):
            raise DataError(f"--data={self._path}: the images are {shape[2]} wide and {shape[1]} high, but "
                            f"--resolution={resolution}; resize the images, or leave the resolution to the data")
        name = os.path.splitext(os.path.basename(os.path.abspath(self._path)))[0]
        super().__init__(name=name, raw_shape=[len(self._image_names), *shape], **super_kwargs)
        self.notes += [*self._files.notes, *notes, *said]
        _ = self._labels            # read now, to find bad ones now

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        name = self._image_names[raw_idx]
        data = self._files.read(name)
        try:
            pixels = decode(data)
        except Exception as error:  # decoders raise anything
            raise broken_image(self._files, name, error) from error
        channels, height, width = self._image_shape
        if pixels.shape[:2] != (height, width):
            raise DataError(f"{self._files.locate(name)}: {pixels.shape[1]} wide, {pixels.shape[0]} high, "
                            f"expected {width} wide, {height} high; resize or crop it first")
        if pixels.shape[2] > channels:
            raise DataError(f"{self._files.locate(name)}: in colour, expected grey like the rest; "
                            "convert it, or ask for 3 channels")
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


def open_stored(kwargs: dict) -> ImageFolderDataset:
    """Opens the data set that `training_set_kwargs` of a network file describe. The file may be a stranger's, so this
    builds no other class. Raises DataError.
    """
    name = kwargs.get("class_name", "training.dataset.ImageFolderDataset")
    if name != "training.dataset.ImageFolderDataset":
        raise DataError(f"the network file was trained on a data set of the class {str(name)[:80]!r}, which is not "
                        "built from a file; give the images with --data")
    kwargs = {key: value for key, value in kwargs.items() if key != "class_name"}
    if not isinstance(kwargs.get("path"), (str, os.PathLike)):
        raise DataError("the network file does not say what it was trained on; give the images with --data")
    try:
        return ImageFolderDataset(**kwargs)
    except (TypeError, AssertionError, OverflowError) as error:
        raise DataError(f"the network file describes its data set {str(kwargs['path'])[:80]!r} in a way that is not "
                        f"understood ({error}); give the images with --data") from error
