"""The data set reader: what it accepts, which items it makes of it, and where it can be used."""

import os
import pickle
import subprocess
import sys
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from dataset_helpers import camera_label, encode, numbered, pixels, refusal, rgb_files, with_cameras, with_labels, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metrics.detectors import data_hash
from training.data.images import natural
from training.dataset import Dataset, ImageFolderDataset

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


# --- archives and folders as people have them

def assert_is_the_plain_one(path, **kwargs):
    """The data set of `with_cameras(rgb_files())`, however it is packed."""
    data = ImageFolderDataset(path, use_labels=True, **kwargs)
    assert len(data) == 4
    for i in range(4):
        np.testing.assert_array_equal(data[i][0], pixels(i, 8, 8, 3).transpose(2, 0, 1))
        np.testing.assert_array_equal(data[i][1], np.float32(camera_label(i)))
    return data


def renamed(files, rename):
    return {rename(name): data for name, data in files.items()}


MAC = {"__MACOSX/._ffhq": b"x", "__MACOSX/ffhq/._dataset.json": b"x", "ffhq/.DS_Store": b"x", "ffhq/00000/._img00000000.png": b"x"}
PACKED = {
    "one folder around everything": lambda files: renamed(files, lambda name: f"ffhq/{name}"),
    "two folders around everything": lambda files: renamed(files, lambda name: f"data/ffhq/{name}"),
    "a note beside that folder": lambda files: {"README.txt": b"hello", **renamed(files, lambda name: f"ffhq/{name}")},
    "macOS": lambda files: {**MAC, **renamed(files, lambda name: f"ffhq/{name}")},
    "dots": lambda files: renamed(files, lambda name: f"./{name}"),
    "dots and a folder": lambda files: renamed(files, lambda name: f"./ffhq/./{name}"),
    "backslashes": lambda files: {"00000\\": b"", **renamed(files, lambda name: name.replace("/", "\\"))},
    "backslashes and a folder": lambda files: renamed(files, lambda name: f"ffhq\\{name}".replace("/", "\\")),
}


@pytest.mark.parametrize("form", ["a.zip", "folder"])
@pytest.mark.parametrize("case", PACKED)
def test_packed_in_other_ways_it_is_the_same_data_set(tmp_path, case, form):
    (tmp_path / "folder").mkdir()
    assert_is_the_plain_one(write(tmp_path / form, PACKED[case](with_cameras(rgb_files()))))


@pytest.mark.parametrize("form", ["a.zip", "folder"])
@pytest.mark.parametrize("stored, listed", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_spelled_in_two_ways(tmp_path, form, stored, listed):
    names = [f"é{i}ü.png" for i in range(3)]
    files = {unicodedata.normalize(stored, name): encode(pixels(i, 8, 8, 3)) for i, name in enumerate(names)}
    labels = [[unicodedata.normalize(listed, name), [float(i)]] for i, name in enumerate(names)]
    data = ImageFolderDataset(write(tmp_path / form, with_labels(files, labels)), use_labels=True)
    for i in range(3):
        np.testing.assert_array_equal(data[i][0], pixels(i, 8, 8, 3).transpose(2, 0, 1))
        assert data[i][1] == [i]


def test_names_that_macos_stores_without_the_flag_for_utf8(tmp_path):
    class Unflagged(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):
            return self.filename.encode(), self.flag_bits

    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in with_labels({"é.png": encode(pixels(0, 8, 8, 3))}, [["é.png", [1.0]]]).items():
            archive.writestr(Unflagged(name), data)
    with zipfile.ZipFile(path) as archive:
        assert "é.png" not in archive.namelist()
    assert ImageFolderDataset(path, use_labels=True)[0][1] == [1]


def test_one_name_in_two_spellings_is_refused(tmp_path):
    message = refusal(lambda: ImageFolderDataset(write(tmp_path / "a.zip", {"a/b.png": b"", "a\\b.png": b""})))
    assert "'a/b.png'" in message and "two spellings" in message and str(tmp_path / "a.zip") in message


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere", rgb_files())
    path = write(tmp_path / "folder", {"dataset.json": with_cameras(rgb_files())["dataset.json"]})
    (path / "00000").symlink_to(tmp_path / "elsewhere" / "00000")
    assert assert_is_the_plain_one(path).notes == []
    (path / "again").symlink_to(path)
    (tmp_path / "elsewhere" / "00000" / "up").symlink_to(path)
    note, = assert_is_the_plain_one(path).notes
    assert "00000/up leads back" in note and str(path) in note


def test_a_folder_linked_twice_counts_twice(tmp_path):
    path = write(tmp_path / "folder", {"a/0.png": encode(pixels(0, 8, 8, 3))})
    (path / "b").symlink_to(path / "a")
    assert len(ImageFolderDataset(path)) == 2


def test_statistics_on_disk_see_what_links_lead_to(tmp_path):
    write(tmp_path / "elsewhere", rgb_files())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "00000").symlink_to(tmp_path / "elsewhere" / "00000")
    (tmp_path / "folder" / "nothing").symlink_to(tmp_path / "none")
    before = data_hash(dict(path=str(tmp_path / "folder")))
    (tmp_path / "elsewhere" / "00000" / "img00000000.png").write_bytes(encode(pixels(9, 8, 8, 3)) + b"more")
    assert data_hash(dict(path=str(tmp_path / "folder"))) != before


def test_zips_are_read_without_pread(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(os, "pread")
    path = write(tmp_path / "a.zip", with_cameras(rgb_files()), zipfile.ZIP_DEFLATED)
    data = assert_is_the_plain_one(path)
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda i: int(data[i % 4][0].sum()), range(100)))
    assert sums == [int(pixels(i % 4, 8, 8, 3).sum()) for i in range(100)]
    path.write_bytes(path.read_bytes()[:300])
    assert "the file ends" in refusal(lambda: data[3])


NUMBERED = ["img1.png", "img2.png", "img10.png", "seed0002.png", "seed0010.png", "seed10000.png", "x2/1.png", "x10/1.png"]


@pytest.mark.parametrize("form", ["a.zip", "folder"])
def test_numbered_images_without_labels_sort_as_they_play(tmp_path, form):
    files = {name: encode(np.full((4, 4, 3), i, dtype=np.uint8)) for i, name in reversed(list(enumerate(NUMBERED)))}
    data = ImageFolderDataset(write(tmp_path / form, files))
    assert [int(data[i][0][0, 0, 0]) for i in range(len(data))] == list(range(len(NUMBERED)))
    files = with_labels(files, [[name, 0] for name in NUMBERED])        # StyleGAN3's order, which published numbers rest on
    data = ImageFolderDataset(write(tmp_path / f"labelled-{form}", files))
    assert [NUMBERED[int(data[i][0][0, 0, 0])] for i in range(len(data))] == sorted(NUMBERED)


@given(st.lists(st.tuples(st.integers(0, 10 ** 6), st.sampled_from(["a", "b.png", "-x"])), max_size=20))
def test_padded_numbers_keep_their_order(parts):
    names = [f"{number // 1000:05d}/img{number:08d}{end}" for number, end in parts]
    assert sorted(names, key=natural) == sorted(names)


# --- subset, mirror, details

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
