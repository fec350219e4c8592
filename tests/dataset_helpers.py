"""Small data sets of known content, good and bad, for the tests of the reader."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from dnnlib.util import UserError
from training.dataset import ImageFolderDataset


def pixels(seed, *shape, high=256, dtype=np.uint8):
    return np.random.RandomState(seed).randint(0, high, shape).astype(dtype)


def encode(image, kind="png", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def camera_label(seed):
    """A pose with a proper rotation, and intrinsics that a mirror image must change."""
    rng = np.random.RandomState(seed)
    rotation = np.linalg.qr(rng.randn(3, 3))[0]
    cam2world = np.eye(4)
    cam2world[:3, :3] = rotation * np.linalg.det(rotation)
    cam2world[:3, 3] = rng.randn(3)
    return [float(x) for x in cam2world.ravel()] + [4.2, 0.1, 0.45, 0.0, 4.3, 0.52, 0.0, 0.0, 1.0]


def rgb_files(count=4, size=8):
    return {f"00000/img{i:08d}.png": encode(pixels(i, size, size, 3)) for i in range(count)}


def with_labels(files, labels):
    return dict(files, **{"dataset.json": json.dumps({"labels": labels}).encode()})


def with_cameras(files):
    return with_labels(files, [[name, camera_label(i)] for i, name in enumerate(sorted(files))])


def write(path, files, compression=zipfile.ZIP_STORED):
    """A zip, or a folder where the name has no ending."""
    if path.suffix:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def refusal(make):
    """The message of the UserError that `make` raises, which must be one line."""
    with pytest.raises(UserError) as info:
        make()
    assert "\n" not in info.value.message and "Traceback" not in info.value.message
    return info.value.message


def numbered(tmp_path, count=20):
    files = {f"img{i:03d}.png": encode(np.full((4, 4, 3), i, dtype=np.uint8)) for i in range(count)}
    return write(tmp_path / "numbered.zip", files)


def labelled(tmp_path, labels, count=4, **kwargs):
    names = sorted(rgb_files(count))
    pairs = [[name, label] for name, label in zip(names, labels)] if isinstance(labels, list) else labels
    return ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(count), pairs)), use_labels=True, **kwargs)
