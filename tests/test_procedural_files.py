"""The files that the procedural renderer writes: what was asked for, all of it or nothing."""

import errno
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import camera_utils
from dataset_preprocessing.procedural import KINDS, render, render_dataset, sample_scene
from dataset_preprocessing.procedural import archive as archive_module
from dataset_preprocessing.procedural import dataset as dataset_module
from dataset_preprocessing.procedural.cli import main
from dataset_preprocessing.procedural.scenes import stack

ROOT = Path(__file__).resolve().parents[1]
both_kinds = pytest.mark.parametrize("kind", list(KINDS))


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def read_zip(path):
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None and all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        return {name: file.read(name) for name in file.namelist()}


@both_kinds
def test_zip_and_its_images_rendered_again(kind, tmp_path):
    result = run("--kind", kind, "--scenes=3", "--views-per-scene=2", "--resolution=24", "--seed=7", "--dest", tmp_path / "a.zip", "--workers=1")
    assert result.exit_code == 0, result.output
    assert "6 images of 3 " + kind in result.output.splitlines()[-1] and "images/s" in result.output
    files = read_zip(tmp_path / "a.zip")
    info = json.loads(files.pop("dataset.json"))
    names = [f"00000/img{index:08d}.png" for index in range(6)]
    assert list(files) == names == [name for name, _ in info["labels"]] == [name for name, _ in info["scenes"]]
    assert [seed for _, seed in info["scenes"]] == [7000000000, 7000000000, 7000000001, 7000000001, 7000000002, 7000000002]
    assert info["procedural"]["kind"] == kind and info["procedural"]["seed"] == 7 and info["procedural"]["version"] == 1
    camera_utils.check_camera_labels(np.float32([label for _, label in info["labels"]]), names)
    for (name, label), (_, seed) in zip(info["labels"], info["scenes"]):
        stored = np.array(Image.open(io.BytesIO(files[name])))
        assert len(label) == 25 and stored.shape == (24, 24, 3) and stored.dtype == np.uint8
        np.testing.assert_array_equal(render(sample_scene(kind, seed), [label], 24)[0], stored)


def test_workers_folders_and_lengths_give_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "BLOCK", 3)
    render_dataset("heads", 4, 2, 16, 2, 0, str(tmp_path / "one.zip"), workers=1, progress=False)
    render_dataset("heads", 4, 2, 16, 2, 0, str(tmp_path / "two.zip"), workers=2, progress=False)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    expected = read_zip(tmp_path / "one.zip")
    render_dataset("heads", 4, 2, 16, 2, 0, str(tmp_path / "folder"), progress=False)
    assert {str(path.relative_to(tmp_path / "folder")): path.read_bytes() for path in (tmp_path / "folder").rglob("*.*")} == expected
    render_dataset("heads", 2, 2, 16, 2, 0, str(tmp_path / "short.zip"), progress=False)
    short = read_zip(tmp_path / "short.zip")
    assert short.pop("dataset.json") and len(short) == 4 and all(expected[name] == data for name, data in short.items())


def test_refuses_to_overwrite_unless_forced(tmp_path):
    for dest in (tmp_path / "a.zip", tmp_path / "folder"):
        args = ("--kind=cars", "--scenes=1", "--resolution=8", "--dest", dest, "--workers=0")
        assert run(*args).exit_code == 0
        before = sorted(path for path in tmp_path.rglob("*"))
        result = run(*args)
        assert result.exit_code == 1 and result.output.startswith("Error: --dest=") and "--force" in result.output and result.output.count("\n") == 1
        assert run(*args, "--force").exit_code == 0
        assert sorted(path for path in tmp_path.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    result = run("--kind=cars", "--scenes=1", "--dest", tmp_path / "mine", "--force")
    assert result.exit_code == 1 and "without dataset.json" in result.output and (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("dest", ["a.zip", "folder"])
def test_failures_leave_nothing_behind(dest, tmp_path, monkeypatch):
    args = ("--kind=heads", "--scenes=5", "--resolution=8", "--dest", tmp_path / dest, "--workers=1")
    writer = archive_module._Zip if dest == "a.zip" else archive_module._Folder
    add = writer.add

    def disk_full(self, name, data):
        if name.endswith("3.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, name, data)

    monkeypatch.setattr(writer, "add", disk_full)
    result = run(*args)
    assert result.exit_code == 1 and result.output.count("\n") == 1 and dest in result.output and "No space left" in result.output
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(writer, "add", add)
    assert run(*args).exit_code == 0
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(dataset_module, "sample_scene", lambda kind, seed: 1 / 0)
    assert isinstance(run(*args, "--force").exception, ZeroDivisionError)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize("args, said", [
    (["--scenes=0"], "--scenes=0: expected 1"),
    (["--views-per-scene=-2"], "--views-per-scene=-2"),
    (["--resolution=2"], "--resolution=2"),
    (["--supersample=0"], "--supersample=0"),
    (["--seed=-1"], "--seed=-1"),
    (["--seed=99999999"], "--seed=99999999"),
    (["--workers=-1"], "--workers=-1"),
    (["--dest=missing/a.zip"], "missing"),
    (["--dest="], "--dest is empty"),
])
def test_bad_values_end_with_one_line(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--kind=heads", "--scenes=1", "--dest=a.zip", *args)
    assert result.exit_code == 1 and result.output.startswith("Error: ") and said in result.output and result.output.count("\n") == 1, result.output
    assert list(tmp_path.iterdir()) == []


def test_runs_as_a_file_from_anywhere(tmp_path):
    command = [sys.executable, ROOT / "dataset_preprocessing/procedural/render.py", "--kind=cars", "--scenes=2", "--resolution=8", "--dest=a.zip"]
    done = subprocess.run([*command, "--workers=1"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(read_zip(tmp_path / "a.zip")) == 3
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("a.zip: 2 images of 2 cars at 8x8")


def test_workers_start_without_torch():
    code = "import sys, dataset_preprocessing.procedural; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.strip() == "False"
    assert len(stack([sample_scene("heads", 0), sample_scene("cars", 0)])) == 2
