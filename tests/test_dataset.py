"""The data set reader: what it accepts, what it converts, and the one line it says about everything else."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from camera_utils import Camera
from dnnlib.util import UserError
from training import image_decoding
from training.dataset import Dataset, ImageFolderDataset


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


# --- what is read

@pytest.mark.parametrize("form", ["stored.zip", "deflated.zip", "folder"])
def test_reads_zips_and_folders_alike(tmp_path, form):
    files = with_cameras(rgb_files())
    path = write(tmp_path / form, files, zipfile.ZIP_DEFLATED if form.startswith("deflated") else zipfile.ZIP_STORED)
    data = ImageFolderDataset(path, use_labels=True)
    assert len(data) == 4 and data.image_shape == [3, 8, 8] and data.resolution == 8 and data.num_channels == 3
    assert data.label_shape == [25] and data.label_dim == 25 and data.has_labels and data.has_camera_labels and not data.has_onehot_labels
    assert data.name == form.removesuffix(".zip") and data.notes == []
    for i in range(4):
        image, label = data[i]
        assert image.dtype == np.uint8 and label.dtype == np.float32
        np.testing.assert_array_equal(image, pixels(i, 8, 8, 3).transpose(2, 0, 1))
        np.testing.assert_array_equal(label, np.float32(camera_label(i)))


def test_images_come_in_the_order_of_their_names_whatever_the_order_in_the_zip(tmp_path):
    files = dict(reversed(rgb_files().items()))
    data = ImageFolderDataset(write(tmp_path / "a.zip", files))
    np.testing.assert_array_equal(data[0][0], pixels(0, 8, 8, 3).transpose(2, 0, 1))


def test_the_caller_owns_image_and_label(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_cameras(rgb_files())), use_labels=True, xflip=True)
    for i in (0, 4):
        (image, label), (again, label_again) = data[i], data[i]
        image[:] = 0
        label[:] = 0
        data.get_label(i)[:] = 0
        data.get_details(i).raw_label[:] = 0
        np.testing.assert_array_equal(data[i][0], again)
        np.testing.assert_array_equal(data[i][1], label_again)
        assert image.flags.c_contiguous and label_again.any()


def test_labels_are_empty_unless_asked_for(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_cameras(rgb_files())))
    assert data.label_dim == 0 and not data.has_labels and data[0][1].shape == (0,)
    assert not data.has_camera_labels and not data.has_onehot_labels


def test_files_of_the_operating_system_are_no_images(tmp_path):
    files = dict(rgb_files(), **{"__MACOSX/00000/img.png": b"junk", "00000/._img00000000.png": b"junk", "notes.txt": b"hello"})
    assert len(ImageFolderDataset(write(tmp_path / "a.zip", files))) == 4


@pytest.mark.parametrize("kind", ["jpeg", "webp", "bmp", "tiff", "png"])
def test_other_formats(tmp_path, kind):
    smooth = np.add.outer(np.arange(16), np.arange(16))[..., None] * np.uint8([4, 5, 6])
    data = ImageFolderDataset(write(tmp_path / "a.zip", {f"{i}.{kind}": encode(smooth.astype(np.uint8), kind) for i in range(2)}))
    assert len(data) == 2 and data.image_shape == [3, 16, 16]
    assert np.abs(data[1][0].transpose(1, 2, 0).astype(int) - smooth).mean() < 3


def test_a_header_far_into_the_file_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x9286] = "x" * 60000          # a comment that fills nearly a whole segment in front of the image
    data = encode(pixels(0, 8, 16, 3), "jpeg", exif=exif)
    assert len(data) > 60000
    assert ImageFolderDataset(write(tmp_path / "a.zip", {"a.jpg": data})).image_shape == [3, 8, 16]


# --- subset, mirror, details

def numbered(tmp_path, count=20):
    files = {f"img{i:03d}.png": encode(np.full((4, 4, 3), i, dtype=np.uint8)) for i in range(count)}
    return write(tmp_path / "numbered.zip", files)


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 7])
def test_max_size_is_the_shuffle_of_stylegan3(tmp_path, seed):
    data = ImageFolderDataset(numbered(tmp_path), max_size=5, random_seed=seed)
    order = np.arange(20)
    np.random.RandomState(seed % 2**31).shuffle(order)
    expected = sorted(order[:5].tolist())
    assert [data.get_details(i).raw_idx for i in range(5)] == expected == [int(data[i][0][0, 0, 0]) for i in range(5)] and len(data) == 5


def test_max_size_beyond_the_set_changes_nothing(tmp_path):
    data = ImageFolderDataset(numbered(tmp_path), max_size=20)
    assert [data.get_details(i).raw_idx for i in range(20)] == list(range(20))


def test_xflip_appends_mirrored_copies_of_the_subset(tmp_path):
    path = write(tmp_path / "a.zip", with_labels(rgb_files(8), [[name, i] for i, name in enumerate(sorted(rgb_files(8)))]))
    plain, both = (ImageFolderDataset(path, max_size=3, use_labels=True, xflip=flip) for flip in (False, True))
    assert len(both) == 2 * len(plain) == 6
    for i in range(3):
        np.testing.assert_array_equal(both[i][0], plain[i][0])
        np.testing.assert_array_equal(both[i + 3][0], plain[i][0][:, :, ::-1])
        np.testing.assert_array_equal(both[i + 3][1], plain[i][1])      # a class is the same in a mirror
        assert both.get_details(i + 3).xflip is True and both.get_details(i).xflip is False
        assert both.get_details(i + 3).raw_idx == both.get_details(i).raw_idx


def test_the_camera_is_mirrored_with_its_image(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_cameras(rgb_files())), use_labels=True, xflip=True)
    flip = np.diag([-1.0, 1, 1, 1])
    for i in range(4):
        label = np.float64(camera_label(i))
        mirrored = data.get_label(i + 4)
        np.testing.assert_allclose(mirrored[:16].reshape(4, 4), flip @ label[:16].reshape(4, 4) @ flip, rtol=1e-6)
        np.testing.assert_allclose(mirrored[16:], [4.2, -0.1, 1 - 0.45, 0, 4.3, 0.52, 0, 0, 1], rtol=1e-6)
        np.testing.assert_array_equal(data.get_label(i), np.float32(label))
        np.testing.assert_array_equal(data.get_details(i + 4).raw_label, np.float32(label))


def test_mirrored_camera_sees_the_mirrored_point_at_the_mirrored_place(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_cameras(rgb_files(1))), use_labels=True, xflip=True)

    def project(label, point):
        cam2world, lens = np.float64(label[:16]).reshape(4, 4), np.float64(label[16:]).reshape(3, 3)
        x, y, z = lens @ (cam2world[:3, :3].T @ (point - cam2world[:3, 3]))
        return x / z, y / z

    point = np.array([0.3, -0.2, 0.5])
    x, y = project(data.get_label(0), point)
    assert project(data.get_label(1), point * [-1, 1, 1]) == pytest.approx((1 - x, y), abs=1e-5)


# --- labels

def labelled(tmp_path, labels, count=4, **kwargs):
    names = sorted(rgb_files(count))
    pairs = [[name, label] for name, label in zip(names, labels)] if isinstance(labels, list) else labels
    return ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(count), pairs)), use_labels=True, **kwargs)


def test_class_numbers_become_onehot(tmp_path):
    data = labelled(tmp_path, [2, 0, 1, 4])
    assert data.has_onehot_labels and data.label_shape == [5] and data.label_dim == 5 and not data.has_camera_labels
    np.testing.assert_array_equal([data[i][1] for i in range(4)], np.eye(5)[[2, 0, 1, 4]])
    assert data[0][1].dtype == np.float32
    raw = data.get_details(3).raw_label
    assert raw.dtype == np.int64 and raw == 4


def test_other_numbers_are_legal_and_not_mirrored(tmp_path):
    data = labelled(tmp_path, [[i, 0.5, -2] for i in range(4)], xflip=True)
    assert data.label_dim == 3 and not data.has_onehot_labels and not data.has_camera_labels
    np.testing.assert_array_equal(data.get_label(6), [2, 0.5, -2])


def test_labels_as_an_object(tmp_path):
    data = labelled(tmp_path, {name: [i, 1.0] for i, name in enumerate(sorted(rgb_files()))})
    np.testing.assert_array_equal(data.get_label(3), [3, 1])


def test_backslashes_in_label_names(tmp_path):
    pairs = [[name.replace("/", "\\"), [1.0]] for name in rgb_files()]
    assert ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(), pairs)), use_labels=True).label_dim == 1


def test_labels_of_absent_images_are_counted(tmp_path):
    pairs = [[name, [1.0]] for name in rgb_files(6)]
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(4), pairs)), use_labels=True)
    assert len(data) == 4
    note, = data.notes
    assert "2 labels" in note and "00000/img00000004.png" in note and str(tmp_path / "a.zip") in note


def test_labels_that_change_are_counted(tmp_path):
    pairs = [[name, [1.0]] for name in rgb_files()] + [["00000/img00000001.png", [2.0]], ["00000/img00000002.png", [1.0]]]
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(), pairs)), use_labels=True)
    assert data.get_label(1) == 2 and "1 images are labelled again" in data.notes[0]


BAD_LABELS = {
    "missing":      ([[1.0], [1.0], [1.0]], ["1 of 4 images", "00000/img00000003.png", "--cond=0"]),
    "null":         ([[1.0], None, None, [1.0]], ["2 of 4 images", "00000/img00000001.png"]),
    "lengths":      ([[1.0, 2], [1.0, 2], [1.0], [1.0]], ["00000/img00000002.png has 1 numbers", "00000/img00000000.png 2"]),
    "mixed":        ([[1.0], 3, 3, 3], ["00000/img00000001.png is 3", "a list of 1", "one form"]),
    "nan":          ([[1.0, 2], [1.0, float("nan")], [1, 2], [1, 2]], ["00000/img00000001.png holds nan at position 1", "1 labels"]),
    "inf":          ([[1.0, 2], [1.0, 2], [float("inf"), 2], [float("-inf"), 2]], ["00000/img00000002.png holds inf at position 0", "2 labels"]),
    "beyond float": ([[1e39], [1], [1], [1]], ["00000/img00000000.png holds 1e+39"]),
    "text":         ([["1.0"], ["2"], ["3"], ["4"]], ["00000/img00000000.png", '"1.0" in it', "flat list of numbers"]),
    "nested":       ([[[1, 0], [0, 1]]] * 4, ["00000/img00000000.png", "flat list"]),
    "truth":        ([True, False, True, True], ["00000/img00000000.png is true"]),
    "word":         (["cat", "dog", "cat", "cat"], ['is "cat"', "class number"]),
    "negative":     ([0, 1, -1, 2], ["00000/img00000002.png is -1", "class number"]),
    "fraction":     ([0, 1, 1.5, 2], ["00000/img00000002.png is 1.5", "class number"]),
    "class nan":    ([0, float("nan"), 1, 2], ["00000/img00000001.png is nan", "class number"]),
    "empty":        ([[], [], [], []], ["empty lists"]),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(tmp_path, case):
    labels, expected = BAD_LABELS[case]
    message = refusal(lambda: labelled(tmp_path, labels))
    assert all(part in message for part in [*expected, str(tmp_path / "a.zip"), "dataset.json"]), message


BAD_DOCUMENTS = {
    "syntax":       (b'{"labels": [[}', ["invalid JSON", "line 1 column"]),
    "not text":     (b"\xff\xfe\x00", ["UTF-8"]),
    "list":         (b"[1, 2]", ["holds a list of 2", '"labels"']),
    "no labels":    (b"{}", ['no "labels"', "--cond=0"]),
    "null":         (b'{"labels": null}', ['no "labels"', "--cond=0"]),
    "number":       (b'{"labels": 3}', ['"labels" holds 3']),
    "triple":       (b'{"labels": [["a.png", 1, 2]]}', ["entry 0", "a list of 3"]),
    "not a name":   (b'{"labels": [[7, [1]]]}', ["entry 0"]),
    "bare names":   (b'{"labels": ["a.png"]}', ["entry 0", '"a.png"']),
}


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
@pytest.mark.parametrize("form", ["a.zip", "folder"])
def test_bad_dataset_json(tmp_path, case, form):
    document, expected = BAD_DOCUMENTS[case]
    path = write(tmp_path / form, dict(rgb_files(), **{"dataset.json": document}))
    message = refusal(lambda: ImageFolderDataset(path, use_labels=True))
    assert all(part in message for part in [*expected, str(path), "dataset.json"]), message
    assert len(ImageFolderDataset(path)) == 4       # whoever needs no labels is not bothered


def test_no_dataset_json(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files())
    message = refusal(lambda: ImageFolderDataset(path, use_labels=True))
    assert str(path) in message and "no dataset.json" in message and "--cond=1" in message


def test_dataset_json_one_folder_down(tmp_path):
    path = write(tmp_path / "a.zip", {f"ffhq/{name}": data for name, data in with_cameras(rgb_files()).items()})
    assert "ffhq/dataset.json" in refusal(lambda: ImageFolderDataset(path, use_labels=True))


# --- kinds of images

def test_grey_throughout_keeps_one_channel(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", {f"{i}.png": encode(pixels(i, 8, 8)) for i in range(3)}))
    assert data.image_shape == [1, 8, 8] and data.notes == []
    np.testing.assert_array_equal(data[2][0][0], pixels(2, 8, 8))


def test_one_colour_image_makes_grey_ones_rgb(tmp_path):
    files = {"0.png": encode(pixels(0, 8, 8)), "1.png": encode(pixels(1, 8, 8)), "2.png": encode(pixels(2, 8, 8, 3))}
    data = ImageFolderDataset(write(tmp_path / "a.zip", files))
    assert data.image_shape == [3, 8, 8]
    np.testing.assert_array_equal(data[0][0], np.stack([pixels(0, 8, 8)] * 3))
    assert "2 grey, 1 RGB images" in data.notes[0] and "read as RGB" in data.notes[0]


def every_kind():
    """(file, what the log calls it, RGB [8, 8, 3] that it must become)."""
    grey, deep, rgba = pixels(1, 8, 8), pixels(2, 8, 8, high=65536, dtype=np.uint16), pixels(3, 8, 8, 4)
    palette = Image.fromarray(pixels(4, 8, 8, 3)).quantize(16)
    cmyk = Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8) + np.uint8([255, 0, 0])).convert("CMYK")
    return [
        (encode(pixels(0, 8, 8, 3)), "RGB", pixels(0, 8, 8, 3)),
        (encode(grey), "grey", np.stack([grey] * 3, axis=2)),
        (encode(Image.fromarray(grey > 99)), "grey", np.stack([np.where(grey > 99, 255, 0)] * 3, axis=2)),
        (encode(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(pixels(9, 8, 8))])), "grey with alpha", np.stack([grey] * 3, axis=2)),
        (encode(deep), "16-bit grey", np.stack([deep >> 8] * 3, axis=2)),
        (encode(rgba), "RGBA", rgba[..., :3]),
        (encode(palette), "palette", np.asarray(palette.convert("RGB"))),
        (encode(cmyk, "tiff"), "CMYK", np.zeros((8, 8, 3)) + [255, 0, 0]),
    ]


@pytest.mark.parametrize("decoder", ["pyspng", "Pillow"])
def test_mixed_kinds_become_rgb_and_are_counted(tmp_path, monkeypatch, decoder):
    if decoder == "pyspng":
        pytest.importorskip("pyspng")
    else:
        monkeypatch.setattr(image_decoding, "pyspng", None)
    kinds = every_kind()
    files = {f"{i}.{'tiff' if kind == 'CMYK' else 'png'}": data for i, (data, kind, _) in enumerate(kinds)}
    data = ImageFolderDataset(write(tmp_path / "a.zip", files))
    assert data.image_shape == [3, 8, 8]
    note, = data.notes
    for part in ("2 grey", "1 RGB", "1 RGBA", "1 grey with alpha", "1 16-bit grey", "1 palette", "1 CMYK", "read as RGB", "without alpha"):
        assert part in note, note
    for i, (_, kind, expected) in enumerate(kinds):
        np.testing.assert_array_equal(data[i][0], expected.transpose(2, 0, 1), err_msg=kind)


def test_all_sorts_of_grey_are_still_grey(tmp_path):
    files = {f"{i}.png": data for i, (data, kind, _) in enumerate(every_kind()) if "grey" in kind}
    data = ImageFolderDataset(write(tmp_path / "a.zip", files))
    assert data.image_shape == [1, 8, 8] and len(data) == 4 and "read as grey" in data.notes[0]
    assert [data[i][0].shape for i in range(4)] == [(1, 8, 8)] * 4


def test_sixteen_bits_of_colour(tmp_path):
    # Pillow cannot write such a PNG: colour type 2, depth 16, no filter.
    import struct
    import zlib
    values = pixels(0, 4, 4, 3, high=65536, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    data = ImageFolderDataset(write(tmp_path / "a.zip", {"a.png": png}))
    np.testing.assert_array_equal(data[0][0], (values >> 8).transpose(2, 0, 1))
    assert "16-bit RGB" in data.notes[0]


def test_transparent_colour_of_a_grey_png_does_not_matter(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", {"a.png": encode(pixels(0, 8, 8), transparency=5)}))
    np.testing.assert_array_equal(data[0][0], pixels(0, 8, 8)[None])


def test_given_channels_spare_the_scan(tmp_path, monkeypatch):
    path = write(tmp_path / "a.zip", {f"{i}.png": encode(pixels(i, 8, 8)) for i in range(2)})
    monkeypatch.setattr("training.dataset.scan", None)
    data = ImageFolderDataset(path, resolution=8, num_channels=3)
    np.testing.assert_array_equal(data[1][0], np.stack([pixels(1, 8, 8)] * 3))


def test_wrong_channels_and_size_are_still_noticed_when_the_scan_was_spared(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files(1))
    assert "in colour" in refusal(lambda: ImageFolderDataset(path, resolution=8, num_channels=1)[0])
    assert "expected 16 wide" in refusal(lambda: ImageFolderDataset(path, resolution=16, num_channels=3)[0])


# --- bad files

def test_missing_path(tmp_path):
    assert str(tmp_path / "no.zip") in refusal(lambda: ImageFolderDataset(tmp_path / "no.zip"))


@pytest.mark.parametrize("content", [b"", b"hello", encode(pixels(0, 8, 8, 3))], ids=["empty", "text", "png"])
def test_not_a_zip(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    message = refusal(lambda: ImageFolderDataset(tmp_path / "a.zip"))
    assert str(tmp_path / "a.zip") in message and f"{len(content)} bytes that are no zip" in message


def test_truncated_zip(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files())
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(lambda: ImageFolderDataset(path))
    assert str(path) in message and "cut short" in message


def test_damaged_zip_names_the_member(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        middle = archive.infolist()[2].header_offset + 150
    content[middle] ^= 0xFF
    path.write_bytes(content)
    data = ImageFolderDataset(path)
    data[1]
    message = refusal(lambda: data[2])
    assert "00000/img00000002.png" in message and str(path) in message and "damaged" in message


def test_zip_replaced_by_a_shorter_one(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files())
    data = ImageFolderDataset(path)
    data.close()
    path.write_bytes(path.read_bytes()[:300])
    assert "00000/img00000003.png" in refusal(lambda: data[3])


def test_packed_by_another_method(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files(), zipfile.ZIP_LZMA)
    assert "zip -0" in refusal(lambda: ImageFolderDataset(path))


@pytest.mark.parametrize("form", ["a.zip", "folder"])
@pytest.mark.parametrize("files", [{}, {"readme.txt": b"hello", "dataset.json": b"{}"}])
def test_no_images(tmp_path, form, files):
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / form, files)
    message = refusal(lambda: ImageFolderDataset(path))
    assert str(path) in message and f"{len(files)} files, none of them an image" in message


@pytest.mark.parametrize("form", ["a.zip", "folder"])
def test_several_sizes(tmp_path, form):
    path = write(tmp_path / form, dict(rgb_files(4), **{"00000/img00000002.png": encode(pixels(0, 8, 12, 3))}))
    message = refusal(lambda: ImageFolderDataset(path))
    for part in (str(path), "00000/img00000002.png: 12 wide, 8 high", "00000/img00000000.png is 8 wide, 8 high", "resize or crop"):
        assert part in message, message


def test_resolution_that_is_not_that_of_the_data(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files())
    message = refusal(lambda: ImageFolderDataset(path, resolution=16))
    assert str(path) in message and "8 wide" in message and "--resolution=16" in message


def test_non_square_images_can_be_read_but_have_no_resolution(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", {"a.png": encode(pixels(0, 8, 12, 3))}))
    assert data[0][0].shape == (3, 8, 12) and data.image_shape == [3, 8, 12]
    message = refusal(lambda: data.resolution)
    assert "12 wide and 8 high" in message and "crop or pad" in message


@pytest.mark.parametrize("size, fits, hint", [(8, True, ""), (4, True, ""), (2, False, "to 4"), (12, False, "to 8"), (48, False, "to 32")])
def test_networks_need_a_power_of_two(tmp_path, size, fits, hint):
    data = ImageFolderDataset(write(tmp_path / "a.zip", rgb_files(1, size)))
    if fits:
        assert data.check_resolution() == data.resolution == size
    else:
        message = refusal(data.check_resolution)
        assert f"{size} wide and high" in message and "power of two" in message and hint in message


def broken_pngs():
    whole = encode(pixels(0, 8, 8, 3))
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    return {"cut": whole[:100], "cut at the end": whole[:-12], "flipped": bytes(flipped)}


# Pillow does not mind a missing IEND chunk; the pixels are whole.
@pytest.mark.parametrize("decoder, case", [("pyspng", "cut"), ("pyspng", "cut at the end"), ("pyspng", "flipped"),
                                           ("Pillow", "cut"), ("Pillow", "flipped")])
@pytest.mark.parametrize("form", ["a.zip", "folder"])
def test_a_broken_png_is_named(tmp_path, monkeypatch, case, form, decoder):
    if decoder == "pyspng":
        pytest.importorskip("pyspng")
    else:
        monkeypatch.setattr(image_decoding, "pyspng", None)
    path = write(tmp_path / form, dict(rgb_files(), **{"00000/img00000001.png": broken_pngs()[case]}))
    data = ImageFolderDataset(path)
    data[0]
    message = refusal(lambda: data[1])
    assert str(path) in message and "00000/img00000001.png" in message and "broken image" in message and "0x" not in message


@pytest.mark.parametrize("content", [b"", b"no picture", encode(pixels(0, 8, 8, 3))[:20]], ids=["empty", "text", "stub"])
def test_a_file_that_is_no_image_at_all(tmp_path, content):
    path = write(tmp_path / "a.zip", dict(rgb_files(), **{"00000/img00000001.png": content}))
    message = refusal(lambda: ImageFolderDataset(path))
    assert "00000/img00000001.png" in message and "a broken image (" in message and "0x" not in message


# --- cameras

def test_good_cameras_pass_and_are_summarised(tmp_path):
    yaw = torch.tensor([-0.3, 0.1, 0.2, 0.4])
    labels = Camera.look_at(yaw, torch.zeros(4), radius=2.7, focal=4.2647).to_label().tolist()
    data = labelled(tmp_path, labels, xflip=True)
    assert data.check_cameras() == []
    stats = data.camera_stats()
    assert stats["radius"] == pytest.approx(2.7, abs=1e-3) and stats["focal"] == pytest.approx(4.2647, abs=1e-3)
    assert json.loads(json.dumps(stats)) == stats


def test_bad_cameras_are_named_with_data_set_and_image(tmp_path):
    labels = [camera_label(i) for i in range(4)]
    labels[2][0] *= 2
    data = labelled(tmp_path, labels)
    message = refusal(data.check_cameras)
    assert str(tmp_path / "a.zip") in message and "00000/img00000002.png" in message


def test_geometry_is_judged_unless_that_is_switched_off(tmp_path):
    angles = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    opengl = Camera.look_at(angles[0], angles[1], radius=2.7, focal=4.2647).to_label().numpy()
    opengl[:, [1, 2, 5, 6, 9, 10]] *= -1                    # y up, z backward
    data = labelled(tmp_path, opengl.tolist(), count=16)
    message = refusal(data.check_cameras)
    assert "OpenGL" in message and str(tmp_path / "a.zip") in message
    data.check_cameras(allow_geometry=True)


@pytest.mark.parametrize("labels, said", [([[1.0, 2]] * 4, "the labels have 2 numbers"), ([0, 1, 2, 3], "class numbers")])
def test_other_labels_are_no_cameras(tmp_path, labels, said):
    message = refusal(labelled(tmp_path, labels).check_cameras)
    assert said in message and "25 numbers" in message and str(tmp_path / "a.zip") in message


# --- processes and threads

def test_pickled_copies_read_on_their_own(tmp_path):
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_cameras(rgb_files())), use_labels=True, xflip=True)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    data.close()
    for i in range(8):
        for mine, theirs in zip(copy[i], data[i]):          # `data` opens its file again
            np.testing.assert_array_equal(mine, theirs)


def test_many_threads(tmp_path):
    data = ImageFolderDataset(numbered(tmp_path, 200))
    with ThreadPoolExecutor(16) as pool:
        values = list(pool.map(lambda i: np.unique(data[i][0]).tolist(), list(range(200)) * 5))
    assert values == [[i] for i in range(200)] * 5


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes(tmp_path, method):
    path = write(tmp_path / "a.zip", dict({f"img{i:03d}.png": encode(np.full((4, 4, 3), i, dtype=np.uint8)) for i in range(40)},
                                          **{"img040.png": encode(pixels(0, 4, 4, 3))[:60]}))
    data = ImageFolderDataset(path)
    data[0]                                                 # the file is open when the workers start
    loader = torch.utils.data.DataLoader(data, sampler=range(40), batch_size=4, num_workers=2, multiprocessing_context=method)
    assert [image[0, 0, 0].item() for images, _ in loader for image in images] == list(range(40))
    loader = torch.utils.data.DataLoader(data, sampler=[40], num_workers=1, multiprocessing_context=method)
    message = refusal(lambda: next(iter(loader)))           # one line also from there
    assert message.startswith(f"{path}: img040.png: a broken image")


def test_pyspng_is_optional(tmp_path):
    """Read in a process that cannot import it."""
    path = write(tmp_path / "a.zip", rgb_files())
    code = ("import sys; sys.modules['pyspng'] = None\n"
            "from training.dataset import ImageFolderDataset\n"
            "print(int(ImageFolderDataset(sys.argv[1])[2][0].sum()))")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    result = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True)
    assert int(result.stdout) == int(pixels(2, 8, 8, 3).sum())


# --- for subclasses

class Stripes(Dataset):
    def __init__(self, **kwargs):
        super().__init__(name="stripes", raw_shape=[3, 1, 4, 4], **kwargs)

    def _load_raw_image(self, raw_idx):
        return np.full((1, 4, 4), raw_idx, dtype=np.uint8)

    def _load_raw_labels(self):
        return None


def test_a_subclass_supplies_images_and_labels():
    data = Stripes(use_labels=True, xflip=True)
    assert len(data) == 6 and data.name == "stripes" and data[5][0].max() == 2 and data[5][1].shape == (0,) and not data.has_labels


def test_a_folder_that_is_gone(tmp_path):
    path = write(tmp_path / "folder", rgb_files())
    data = ImageFolderDataset(path)
    shutil.rmtree(path)
    message = refusal(lambda: data[1])
    assert "00000/img00000001.png" in message and "cannot read it" in message
