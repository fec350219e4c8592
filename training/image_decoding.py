"""Image bytes -> uint8 pixels with one or three channels, upright, and what kind of image the header announces."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from PIL.Image import Transpose

try:
    import pyspng
except ImportError:                 # Pillow reads PNGs too, more slowly
    pyspng = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}            # by colour type (PNG specification, 11.2.1)
PIL_KINDS = {"1": "grey", "L": "grey", "LA": "grey with alpha", "La": "grey with alpha", "P": "palette", "PA": "palette", "RGBX": "RGB"}
GREY_KINDS = ("grey", "16-bit grey", "grey with alpha", "16-bit grey with alpha")
HEADER_BYTES = 33                   # a PNG up to and with its IHDR chunk
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
SHEET = ("raycond", "sheet")        # a text in PNGs that show several images
METADATA = (b"Raw profile type", b"XML:com.adobe.xmp")             # how texts begin that hold EXIF or XMP
ORIENTATION = 0x0112                # of EXIF: how to turn the stored pixels upright
UPRIGHT = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
           6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}


class ImageHeader(NamedTuple):
    """Size [pixels] and kind of an image, once it is upright."""

    width: int
    height: int
    kind: str
    turned: bool = False            # Are its pixels stored in another orientation?

    @property
    def is_grey(self) -> bool:
        return self.kind in GREY_KINDS


@functools.cache
def extensions() -> frozenset[str]:
    """File name endings, in lower case and with the dot, that Pillow can open."""
    PIL.Image.init()
    return frozenset(ending for ending, name in PIL.Image.EXTENSION.items() if name in PIL.Image.OPEN)


def has_image_ending(name: str) -> bool:
    return name[name.rfind("."):].lower() in extensions()


def parse_png_header(data: bytes) -> ImageHeader | None:
    """What the first bytes of a PNG say of the pixels as they are stored; None where they start no PNG."""
    if len(data) < HEADER_BYTES or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    if colour_type not in PNG_KINDS:
        return None
    return ImageHeader(width, height, ("16-bit " if depth == 16 else "") + PNG_KINDS[colour_type])


def parse_header(data: bytes) -> ImageHeader:
    """Of an image in any format; `data` may be a prefix if that holds the header. What Pillow raises passes through.

    Metadata behind the pixels of a square PNG are not looked for: they change no size.
    """
    stored = parse_png_header(data)
    if stored is not None:
        kinds, described = {kind for kind, _, _ in _png_chunks(data)}, _has_metadata(data)
        if not described and (b"IEND" in kinds or (b"IDAT" in kinds and stored.width == stored.height)):
            return stored
        if b"IEND" not in kinds:         # Pillow would overlook metadata that are cut short
            raise ValueError(f"cut short after {len(data)} bytes")
    with PIL.Image.open(io.BytesIO(data)) as image:
        turn = _turn_of(image)
        kind = "16-bit grey" if image.mode.startswith("I;16") else PIL_KINDS.get(image.mode, image.mode)
        kind = kind if stored is None else stored.kind
        if turn is None:
            return ImageHeader(image.width, image.height, kind)
        if image.format == "TIFF":       # whether this is its stored or its upright size depends on Pillow's version
            return ImageHeader(*_upright(image).size, kind, turned=True)
        swapped = PIL.Image.new("1", (1, 2)).transpose(turn).size == (2, 1)
        return ImageHeader(*(image.size[::-1] if swapped else image.size), kind, turned=True)


def decode(data: bytes) -> np.ndarray:
    """Pixels, uint8 [H, W, 1] of grey images and [H, W, 3] of all others, top row first.

    They are turned upright as EXIF or XMP metadata say. Alpha is dropped, not composited. 16-bit values keep their high
    byte. Palettes, CMYK and the like become RGB as Pillow converts them.
    Raises ValueError, or whatever the decoder raises, where the image is broken.
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
            raise ValueError(f"pixels of 32 bits (Pillow mode {image.mode}); expected 8 or 16 bits a channel: convert the image")
        else:
            pixels = np.asarray(image.convert("L" if PIL_KINDS.get(image.mode) in GREY_KINDS else "RGB"))
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def is_sheet(data: bytes) -> bool:
    """Do these first bytes of a file carry the mark of a sheet of images?"""
    mark = "\0".join(SHEET).encode()
    return data.startswith(PNG_SIGNATURE) and any(
        kind == b"tEXt" and data.startswith(mark, begin) for kind, begin, _ in _png_chunks(data))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, length) of the chunks that begin in `data`."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, length
        position += 12 + length


def _has_metadata(data: bytes) -> bool:
    """Is there anything in the PNG, or in its first bytes, that may say how to turn it?"""
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
    """What turns an opened image upright; None: it is, or its metadata are broken."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:               # whatever Pillow raises about metadata; the pixels may be whole
        return None


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image with its pixels loaded and turned. (New Pillows turn a TIFF while they load it.)"""
    image.load()
    turn = _turn_of(image)
    return image if turn is None else image.transpose(turn)
