"""The images of a data set: the kinds that become grey or RGB, and the one line that is said about everything else."""

import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from dataset_helpers import encode, pixels, refusal, rgb_files, write
from PIL import Image

from training.data import images as image_decoding
from training.dataset import ImageFolderDataset
from training.run.snapshots import save_image_grid

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


# --- photos stored in another orientation

PHOTO = np.repeat(np.repeat(np.uint8([[[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]], [[0, 0, 0], [250, 250, 0], [0, 250, 250], [250, 0, 250]]]),
                            8, axis=0), 8, axis=1)          # [16, 32, 3], eight squares that differ

STORED = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1),
          6: lambda x: np.rot90(x), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: np.rot90(x, -1)}     # upright -> as in the file


def photo(orientation, kind):
    """PHOTO, stored as cameras do that were held otherwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(lossless=True) if kind == "webp" else {}
    return encode(np.ascontiguousarray(STORED[orientation](PHOTO)), kind, exif=exif, **options)


@pytest.mark.parametrize("decoder", ["pyspng", "Pillow"])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "mpo"])
@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_turned_upright(tmp_path, monkeypatch, orientation, kind, decoder):
    if decoder == "Pillow":
        monkeypatch.setattr(image_decoding, "pyspng", None)
    path = write(tmp_path / "a.zip", {f"{i}.{kind.replace('mpo', 'jpg')}": photo(orientation, kind) for i in range(2)})
    data = ImageFolderDataset(path)
    assert data.image_shape == [3, 16, 32]
    assert np.abs(data[1][0].astype(int) - PHOTO.transpose(2, 0, 1)).mean() <= (20 if kind in ("jpeg", "mpo") else 0)     # lossy
    assert [note for note in data.notes if "2 of 2 images are turned upright" in note and str(path) in note] == (data.notes if orientation > 1 else [])
    assert image_decoding.parse_header(photo(orientation, kind))[:2] == (32, 16)


def test_a_landscape_photo_with_orientation_6_is_a_portrait(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"0.jpg": encode(pixels(0, 8, 16, 3), "jpeg", exif=exif), "1.jpg": encode(pixels(0, 16, 8, 3), "jpeg")}
    data = ImageFolderDataset(write(tmp_path / "folder", files))
    assert data.image_shape == [3, 16, 8] and "1 of 2 images are turned upright" in data.notes[0]


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png, kind, content, before):
    at = png.index(before) - 4
    return png[:at] + png_chunk(kind, content) + png[at:]


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
WAYS = {
    "EXIF in front of the pixels": (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", b"IDAT"),
    "EXIF behind the pixels": (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", b"IEND"),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, b"IDAT"),
}


@pytest.mark.parametrize("filler", [0, 5000, 50000], ids=["short", "long", "longer"])
@pytest.mark.parametrize("case", WAYS)
def test_wherever_a_png_says_so(tmp_path, case, filler):
    png = with_chunk(encode(np.ascontiguousarray(STORED[6](PHOTO))), b"prVt", b"x" * filler, b"IDAT")
    data = ImageFolderDataset(write(tmp_path / "a.zip", {"0.png": with_chunk(png, *WAYS[case])}))
    assert data.image_shape == [3, 16, 32]
    np.testing.assert_array_equal(data[0][0], PHOTO.transpose(2, 0, 1))


def test_metadata_of_any_length(tmp_path):
    """As with a thumbnail in them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for length in (0, 3000, 4000, 4100, 5000, 32000, 33000, 60000):
        exif[0x9286] = "x" * length
        for kind in ("png", "jpeg", "webp"):
            data = ImageFolderDataset(write(tmp_path / f"{length}{kind}.zip", {f"0.{kind}": encode(pixels(0, 8, 16, 3), kind, exif=exif)}))
            assert data.image_shape == [3, 16, 8] and data[0][0].shape == (3, 16, 8) and "1 of 1" in data.notes[0], (length, kind)


def test_broken_metadata_do_not_matter(tmp_path):
    png = with_chunk(encode(PHOTO), b"eXIf", b"nonsense", b"IDAT")
    jpeg = encode(PHOTO, "jpeg", exif=b"Exif\0\0nonsense")
    data = ImageFolderDataset(write(tmp_path / "a.zip", {"0.png": png, "1.jpg": jpeg}))
    assert data.image_shape == [3, 16, 32] and data.notes == []
    np.testing.assert_array_equal(data[0][0], PHOTO.transpose(2, 0, 1))


@pytest.mark.parametrize("kind, image", [("png", pixels(0, 16, 16, high=65536, dtype=np.uint16)), ("png", pixels(0, 16, 16)),
                                         ("tiff", pixels(0, 16, 16, high=65536, dtype=np.uint16)), ("png", pixels(0, 16, 16, 4))])
def test_other_kinds_of_pixels_are_turned(tmp_path, kind, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = ImageFolderDataset(write(tmp_path / "a.zip", {f"0.{kind}": encode(image, kind, exif=exif)}))
    upright = np.rot90(image, -1) >> (8 if image.dtype == np.uint16 else 0)
    np.testing.assert_array_equal(data[0][0], upright.reshape(16, 16, -1)[..., :3].transpose(2, 0, 1))


# --- sheets of images among the images

@pytest.mark.parametrize("form", ["a.zip", "folder"])
@pytest.mark.parametrize("name", ["grid.png", "reals.png", "fakes_init.png", "fakes000040.png", "views000000_008.png", "curves.png", "metrics.png"])
def test_a_sheet_does_not_spoil_a_folder_of_images(tmp_path, name, form):
    files = {f"seed{i:04d}.png": encode(pixels(i, 8, 8, 3)) for i in range(4)}
    path = write(tmp_path / form, {name: encode(pixels(9, 16, 16, 3)), **files})
    data = ImageFolderDataset(path)
    note, = data.notes
    assert len(data) == 4 and data.image_shape == [3, 8, 8] and name in note and "left out" in note and str(path) in note
    assert len(ImageFolderDataset(path, resolution=8, num_channels=3)) == 4


def test_a_sheet_of_one_image_is_known_by_its_mark(tmp_path):
    path = write(tmp_path / "folder", rgb_files(2))
    save_image_grid(pixels(0, 1, 3, 8, 8), str(path / "grid.png"), (1, 1))
    assert len(ImageFolderDataset(path)) == 2


def test_images_that_are_called_like_sheets_stay(tmp_path):
    names = ["grid.png", "fakes000001.png", "fakes000002.png", "other.png"]
    assert len(ImageFolderDataset(write(tmp_path / "folder", {name: encode(pixels(0, 8, 8, 3)) for name in names}))) == 4
    assert len(ImageFolderDataset(write(tmp_path / "a.zip", {name: encode(pixels(0, 8, 8, 3)) for name in names[1:3]}))) == 2


def test_training_runs_inside_the_folder_do_not_spoil_it(tmp_path):
    run = {f"00000-raycond2/{name}": encode(pixels(0, 16, 8, 3)) for name in ("reals.png", "fakes_init.png", "mine.png")}
    path = write(tmp_path / "folder", dict(rgb_files(), **run, **{"00000-raycond2/training_options.json": b"{}"}))
    data = ImageFolderDataset(path)
    assert len(data) == 4 and "3 images of training runs (00000-raycond2/)" in data.notes[0]


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


def test_a_folder_that_is_gone(tmp_path):
    path = write(tmp_path / "folder", rgb_files())
    data = ImageFolderDataset(path)
    shutil.rmtree(path)
    message = refusal(lambda: data[1])
    assert "00000/img00000001.png" in message and "cannot read it" in message
