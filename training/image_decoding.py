"""Image bytes -> uint8 pixels with one or three channels, and what kind of image the header announces."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import PIL.Image

try:
    import pyspng
except ImportError:                 # Pillow reads PNGs too, more slowly
    pyspng = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}            # by colour type (PNG specification, 11.2.1)
PIL_KINDS = {"1": "grey", "L": "grey", "LA": "grey with alpha", "La": "grey with alpha", "P": "palette", "PA": "palette", "RGBX": "RGB"}
GREY_KINDS = ("grey", "16-bit grey", "grey with alpha", "16-bit grey with alpha")
HEADER_BYTES = 33                   # a PNG up to and with its IHDR chunk


class ImageHeader(NamedTuple):
    """Size [pixels] and kind of an image."""

    width: int
    height: int
    kind: str

    @property
    def is_grey(self) -> bool:
        return self.kind in GREY_KINDS


def extensions() -> frozenset[str]:
    """File name endings, in lower case and with the dot, that Pillow can open."""
    PIL.Image.init()
    return frozenset(ending for ending, name in PIL.Image.EXTENSION.items() if name in PIL.Image.OPEN)


def parse_png_header(data: bytes) -> ImageHeader | None:
    """What the first bytes of a PNG say; None where they start no PNG."""
    if len(data) < HEADER_BYTES or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    if colour_type not in PNG_KINDS:
        return None
    return ImageHeader(width, height, ("16-bit " if depth == 16 else "") + PNG_KINDS[colour_type])


def parse_header(data: bytes) -> ImageHeader:
    """The same for any format; `data` may be a prefix if that holds the header. Whatever Pillow raises passes through."""
    header = parse_png_header(data)
    if header is not None:
        return header
    with PIL.Image.open(io.BytesIO(data)) as image:
        kind = "16-bit grey" if image.mode.startswith("I;16") else PIL_KINDS.get(image.mode, image.mode)
        return ImageHeader(image.width, image.height, kind)


def decode(data: bytes) -> np.ndarray:
    """Pixels, uint8 [H, W, 1] of grey images and [H, W, 3] of all others, top row first.

    Alpha is dropped, not composited. 16-bit values keep their high byte. Palettes, CMYK and the like become RGB as Pillow converts them.
    Raises ValueError, or whatever the decoder raises, where the image is broken.
    """
    header = parse_png_header(data)
    if pyspng is not None and header is not None and header.kind in ("grey", "RGB", "RGBA") and data[24] == 8:
        _check_png_chunks(data)
        pixels = pyspng.load(data)
        pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
        return pixels[:, :, :1 if header.is_grey else 3]
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()
        # Before Pillow 10.3 a PNG of 16 bits had mode I.
        if image.mode.startswith("I;16") or (image.mode == "I" and header is not None):
            pixels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (Pillow mode {image.mode}); expected 8 or 16 bits a channel: convert the image")
        else:
            pixels = np.asarray(image.convert("L" if PIL_KINDS.get(image.mode) in GREY_KINDS else "RGB"))
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _check_png_chunks(data: bytes) -> None:
    """Compares the chunks with their checksums, which pyspng does not."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4:end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"chunk at byte {position} has a wrong checksum")
        if data[position + 4:position + 8] == b"IEND":
            return
        position = end + 4
    raise ValueError(f"cut short after {len(data)} bytes")
