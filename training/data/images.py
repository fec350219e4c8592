"""The images of a data set: which files they are, what their headers say, and their pixels."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from training.data.archives import LABEL_FILE, DataError, FolderFiles, ZipFiles, has_image_ending

try:
    import pyspng
except ImportError:                 # Pillow reads PNGs as well, but more slowly
    pyspng = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# By colour type (PNG specification, 11.2.1), and by Pillow's mode.
PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
PIL_KINDS = {"1": "grey", "L": "grey", "LA": "grey with alpha", "La": "grey with alpha", "P": "palette",
             "PA": "palette", "RGBX": "RGB"}
GREY_KINDS = ("grey", "16-bit grey", "grey with alpha", "16-bit grey with alpha")
HEADER_BYTES = 33                   # of a PNG, up to the end of its IHDR chunk
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
SHEET = ("raycond", "sheet")        # a text in PNGs that show several images
METADATA = (b"Raw profile type", b"XML:com.adobe.xmp")             # the beginnings of texts that hold EXIF or XMP
ORIENTATION = 0x0112                # of EXIF: how to turn the stored pixels upright
UPRIGHT = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
           6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
RUN_FILE = "training_options.json"       # marks a run folder
# What commands write beside images.
SHEET_NAMES = re.compile(r"(.*/)?(grid|reals|curves|metrics|(fakes|views)(_init|[0-9]{6}[0-9_.]*))\.png")


class ImageHeader(NamedTuple):
    """Size [pixels] and kind of an image after it is turned upright."""

    width: int
    height: int
    kind: str
    turned: bool = False            # its pixels are stored in another orientation

    @property
    def is_grey(self) -> bool:
        return self.kind in GREY_KINDS


def parse_png_header(data: bytes) -> ImageHeader | None:
    """The header in the first bytes of a PNG, for the pixels as they are stored. None: not a PNG."""
    if len(data) < HEADER_BYTES or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    if colour_type not in PNG_KINDS:
        return None
    return ImageHeader(width, height, ("16-bit " if depth == 16 else "") + PNG_KINDS[colour_type])


def parse_header(data: bytes) -> ImageHeader:
    """The header of an image in any format. `data` may be only the first bytes, if they hold it. Raises what Pillow
    raises.

    Ignores metadata after the pixels of a square PNG, since turning does not change its size.
    """
    stored = parse_png_header(data)
    if stored is not None:
        kinds, described = {kind for kind, _, _ in _png_chunks(data)}, _has_metadata(data)
        if not described and (b"IEND" in kinds or (b"IDAT" in kinds and stored.width == stored.height)):
            return stored
        if b"IEND" not in kinds:         # Pillow would not notice metadata that are cut short
            raise ValueError(f"cut short after {len(data)} bytes")
    with PIL.Image.open(io.BytesIO(data)) as image:
        turn = _turn_of(image)
        kind = "16-bit grey" if image.mode.startswith("I;16") else PIL_KINDS.get(image.mode, image.mode)
        kind = kind if stored is None else stored.kind
        if turn is None:
            return ImageHeader(image.width, image.height, kind)
        if image.format == "TIFF":       # Pillow's version decides if its size is the stored or the upright one
            return ImageHeader(*_upright(image).size, kind, turned=True)
        swapped = PIL.Image.new("1", (1, 2)).transpose(turn).size == (2, 1)
        return ImageHeader(*(image.size[::-1] if swapped else image.size), kind, turned=True)


def decode(data: bytes) -> np.ndarray:
    """Pixels, uint8 [H, W, 1] of grey images and [H, W, 3] of all others, top row first.

    Turns them upright as EXIF or XMP metadata say. Drops alpha without compositing. Keeps the high byte of 16-bit
    values. Pillow converts palettes, CMYK and the like to RGB. Raises ValueError, or what the decoder raises, if the
    image is broken.
    """
    header = parse_png_header(data)
    if pyspng is not None and header is not None and header.kind in ("grey", "RGB", "RGBA") and data[24] == 8:
        _check_png_chunks(data)
        if not _has_metadata(data):
            pixels = pyspng.load(data)
            pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
            return pixels[:, :, :1 if header.is_grey else 3]
    with PIL.Image.open(io.BytesIO(data)) as opened:
        image = _upright(opened)
        # Before Pillow 10.3 a PNG of 16 bits had mode I.
        if image.mode.startswith("I;16") or (image.mode == "I" and header is not None):
            pixels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (Pillow mode {image.mode}); expected 8 or 16 bits a channel: "
                             "convert the image")
        else:
            pixels = np.asarray(image.convert("L" if PIL_KINDS.get(image.mode) in GREY_KINDS else "RGB"))
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def is_sheet(data: bytes) -> bool:
    """Whether the first bytes of a file have the mark of a sheet of images."""
    mark = "\0".join(SHEET).encode()
    return data.startswith(PNG_SIGNATURE) and any(
        kind == b"tEXt" and data.startswith(mark, begin) for kind, begin, _ in _png_chunks(data))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin of the content, length) of the chunks that begin in `data`."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, length
        position += 12 + length


def _has_metadata(data: bytes) -> bool:
    """Whether the PNG, or its first bytes, may say how to turn it."""
    return any(kind == b"eXIf" or (kind in TEXT_CHUNKS and data.startswith(METADATA, begin))
               for kind, begin, _ in _png_chunks(data))


def _check_png_chunks(data: bytes) -> None:
    """Compares the chunks with their checksums, which pyspng does not."""
    for kind, begin, length in _png_chunks(data):
        end = begin + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[begin - 4:end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"chunk at byte {begin - 8} has a wrong checksum")
        if kind == b"IEND":
            return
    raise ValueError(f"cut short after {len(data)} bytes")


def _turn_of(image: PIL.Image.Image) -> Any:
    """What turns an opened image upright. None: it is upright, or its metadata are broken."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:               # Pillow raises anything about metadata; the pixels may be fine
        return None


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image with its pixels loaded and turned. (New Pillows turn a TIFF while they load it.)"""
    image.load()
    turn = _turn_of(image)
    return image if turn is None else image.transpose(turn)


# ---------------------------------------------------------------------------------------------------------------------
# Which files of a data set are its images, and what their headers have in common.

def list_images(files: ZipFiles | FolderFiles) -> tuple[list[str], list[str]]:
    """The images of a data set in their order, and notes for the log.

    Leaves out sheets of images (grid.png and the like) and run folders. With a dataset.json the order is alphabetic, as
    in StyleGAN3 and EG3D; without it, numbers in the names are compared as numbers.
    """
    found = [name for name in files.names if has_image_ending(name)]
    runs = tuple(name.removesuffix(RUN_FILE) for name in files.names if name.endswith("/" + RUN_FILE))
    names = [name for name in found if not name.startswith(runs)]
    notes = []
    if len(names) < len(found):
        notes.append(f"{files.path}: {len(found) - len(names)} images of training runs ({min(runs)}) are left out")
    sheets = _sheets(files, names)
    if sheets:
        names = [name for name in names if name not in sheets]
        notes.append(f"{files.path}: {min(sheets)} is a sheet that a command wrote, not one of the images; "
                     + ("it is left out" if len(sheets) == 1 else f"it and {len(sheets) - 1} more are left out"))
    return sorted(names, key=None if LABEL_FILE in files.names else natural), notes


def natural(name: str) -> tuple[str, str]:
    """Sorts img2 before img10. Names whose numbers are padded with zeros keep the order of their letters."""
    return re.sub("[0-9]+", lambda number: number[0].zfill(32), name), name


def _sheets(files: ZipFiles | FolderFiles, names: Sequence[str]) -> set[str]:
    """Files with the name of a sheet that have its mark or, as earlier versions wrote no mark, another size than the
    images.
    """
    candidates = [name for name in names if SHEET_NAMES.fullmatch(name)]
    other = next((name for name in sorted(names) if not SHEET_NAMES.fullmatch(name)), None) if candidates else None
    size = None if other is None else _read_header(files, other)[:2]
    return {name for name in candidates if is_sheet(files.read(name, 1 << 12))
            or (size is not None and _read_header(files, name)[:2] != size)}


def scan(files: ZipFiles | FolderFiles, names: Sequence[str],
         num_channels: int | None) -> tuple[tuple[int, int, int], list[str]]:
    """(C, H, W) of these images and notes for the log. num_channels: None = one if all are grey, else three.

    Raises DataError that names the first image that is broken, or has another size than the first one.
    """
    batches = [names[start:start + 256] for start in range(0, len(names), 256)]
    # In threads, since each header is a round trip on a network drive.
    with ThreadPoolExecutor(16) as pool:
        read = pool.map(lambda batch: [_read_header(files, name) for name in batch], batches)
        headers = [header for batch in read for header in batch]
    first = headers[0]
    for name, header in zip(names, headers):
        if header[:2] != first[:2]:
            raise DataError(f"{files.locate(name)}: {header.width} wide, {header.height} high, but {names[0]} is "
                            f"{first.width} wide, {first.height} high; expected images of one size: "
                            "resize or crop them first")
    if num_channels is None:
        num_channels = 1 if all(header.is_grey for header in headers) else 3
    notes = _notes(files.path, Counter(header.kind for header in headers), num_channels)
    turned = sum(header.turned for header in headers)
    if turned:
        notes.append(f"{files.path}: {turned} of {len(headers)} images are turned upright, as the orientation in their "
                     "metadata (EXIF) says")
    return (num_channels, first.height, first.width), notes


def _notes(path: str, kinds: Counter, num_channels: int) -> list[str]:
    target = "grey" if num_channels == 1 else "RGB"
    if set(kinds) == {target}:
        return []
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    dropped = ", without alpha" if any(kind.endswith(("alpha", "RGBA", "palette")) for kind in kinds) else ""
    return [f"{path}: {counts} images; all are read as {target}{dropped}"]


def _read_header(files: ZipFiles | FolderFiles, name: str) -> ImageHeader:
    """Reads only the first kilobytes of most images, and the whole of a TIFF, whose header may be anywhere."""
    for limit in (1 << 12, 1 << 15):
        data = files.read(name, limit)
        with contextlib.suppress(Exception):        # the header may be longer; a broken file fails again below
            if not data.startswith(TIFF_SIGNATURES):
                return parse_header(data)
    data = files.read(name)
    try:
        return parse_header(data)
    except Exception as error:      # decoders raise anything
        raise broken_image(files, name, error) from error


def broken_image(files: ZipFiles | FolderFiles, name: str, error: Exception) -> DataError:
    """The error to raise when decoding failed with `error`."""
    reason = "in no format that Pillow knows" if isinstance(error, PIL.UnidentifiedImageError) else error
    return DataError(f"{files.locate(name)}: a broken image ({reason}); replace it, or remove it and its label")
