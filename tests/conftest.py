"""Small data sets that several test files share."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from metric_helpers import save_detector
from PIL import Image

from camera_utils import camera_for
from dnnlib import make_cache_dir_path


@pytest.fixture(scope="session", autouse=True)
def cache_without_detectors(tmp_path_factory):
    """Else a run without --metrics would compute fid50k_full on machines whose cache has the detector. Compiled operators stay where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYCOND_OPS_CACHE", os.environ.get("RAYCOND_OPS_CACHE") or make_cache_dir_path("ops"))
        patch.setenv("DNNLIB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def write_dataset(path, labels, size=16, mode="RGB", **document):
    """An EG3D zip with one noise image per label; a label of None leaves the image without one. Returns the path as a string."""
    rng = np.random.RandomState(0)
    with zipfile.ZipFile(path, "w") as archive:
        table = []
        for i, label in enumerate(labels):
            name = f"00000/img{i:08d}.png"
            pixels = rng.randint(0, 256, [size, size, 3], dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(stream, "PNG")
            archive.writestr(name, stream.getvalue())
            if label is not None:
                table.append([name, label])
        archive.writestr("dataset.json", json.dumps(dict(document, labels=table)))
    return str(path)


def camera_labels(count, seed=0):
    """`count` labels of cameras around the front of a head."""
    rng = np.random.RandomState(seed)
    return [camera_for("heads", yaw=float(rng.uniform(-0.7, 0.7)), pitch=float(rng.uniform(-0.25, 0.25))).to_label()[0].tolist() for _ in range(count)]


@pytest.fixture(scope="session")
def camera_zip(tmp_path_factory):
    """64 noise images of 16 px with cameras."""
    return write_dataset(tmp_path_factory.mktemp("data") / "cameras.zip", camera_labels(64))


@pytest.fixture(scope="session")
def class_zip(tmp_path_factory):
    """48 images of 16 px in three classes."""
    return write_dataset(tmp_path_factory.mktemp("data") / "classes.zip", [i % 3 for i in range(48)])


SMALL = ["--cbase=128", "--cmax=16", "--map-depth=2", "--batch=8", "--workers=0", "--device=cpu"]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for a test, tmp_path / "cache"."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def one_thread():
    """As many threads as each of the processes has with which a test compares this one: with more, libraries may round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """The path of a small detector that serves as any kind."""
    return save_detector(tmp_path_factory.mktemp("detectors") / "tiny.pt")
