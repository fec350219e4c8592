"""Which files of a data set are its images, and a look at their headers: one size? grey or colour? upright?"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import PIL

from training import image_decoding
from training.image_files import LABEL_FILE, DataError, FolderFiles, ZipFiles

TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
RUN_FILE = "training_options.json"       # marks a run folder
# What commands write beside images.
SHEET_NAMES = re.compile(r"(.*/)?(grid|reals|curves|metrics|(fakes|views)(_init|[0-9]{6}[0-9_.]*))\.png")


def list_images(files: ZipFiles | FolderFiles) -> tuple[list[str], list[str]]:
    """The images of a data set in their order, and notes for the log.

    Sheets of images (grid.png and the like) and run folders are left out. With a dataset.json the order is that of the
    names' letters, as in StyleGAN3 and EG3D; without it, numbers in the names are compared as numbers.
    """
    found = [name for name in files.names if image_decoding.has_image_ending(name)]
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
    """Those that are called like a sheet and carry its mark or (earlier versions had none) have not the images' size."""
    candidates = [name for name in names if SHEET_NAMES.fullmatch(name)]
    other = next((name for name in sorted(names) if not SHEET_NAMES.fullmatch(name)), None) if candidates else None
    size = None if other is None else _read_header(files, other)[:2]
    return {name for name in candidates if image_decoding.is_sheet(files.read(name, 1 << 12))
            or (size is not None and _read_header(files, name)[:2] != size)}


def scan(files: ZipFiles | FolderFiles, names: Sequence[str], num_channels: int | None) -> tuple[tuple[int, int, int], list[str]]:
    """(C, H, W) of these images and notes for the log. `num_channels` None: one if all are grey, else three.

    Raises DataError that names the first image that is broken or of another size than the first.
    """
    batches = [names[start:start + 256] for start in range(0, len(names), 256)]
    # Threads: on a network drive each header is a round trip.
    with ThreadPoolExecutor(16) as pool:
        headers = [header for batch in pool.map(lambda batch: [_read_header(files, name) for name in batch], batches) for header in batch]
    first = headers[0]
    for name, header in zip(names, headers):
        if header[:2] != first[:2]:
            raise DataError(f"{files.locate(name)}: {header.width} wide, {header.height} high, but {names[0]} is {first.width} wide, "
                            f"{first.height} high; expected images of one size: resize or crop them first")
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


def _read_header(files: ZipFiles | FolderFiles, name: str) -> image_decoding.ImageHeader:
    """Of most images the first kilobytes suffice; of a TIFF no part does, for its header may lie anywhere."""
    for limit in (1 << 12, 1 << 15):
        data = files.read(name, limit)
        with contextlib.suppress(Exception):        # perhaps the header needs more; a broken file fails again below
            if not data.startswith(TIFF_SIGNATURES):
                return image_decoding.parse_header(data)
    data = files.read(name)
    try:
        return image_decoding.parse_header(data)
    except Exception as error:      # decoders raise whatever they like
        raise broken_image(files, name, error) from error


def broken_image(files: ZipFiles | FolderFiles, name: str, error: Exception) -> DataError:
    """What to raise where decoding ended in `error`."""
    reason = "in no format that Pillow knows" if isinstance(error, PIL.UnidentifiedImageError) else error
    return DataError(f"{files.locate(name)}: a broken image ({reason}); replace it, or remove it and its label")
