"""A look at the headers of all images of a data set: one size? grey or colour?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import PIL

from training import image_decoding
from training.image_files import DataError, FolderFiles, ZipFiles


def image_names(names: Sequence[str]) -> list[str]:
    """The names with an image's ending, sorted; not what operating systems leave behind (hidden files, __MACOSX)."""
    endings = image_decoding.extensions()
    return sorted(name for name in names if name[name.rfind("."):].lower() in endings
                  and not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")))


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
    return (num_channels, first.height, first.width), _notes(files.path, Counter(header.kind for header in headers), num_channels)


def _notes(path: str, kinds: Counter, num_channels: int) -> list[str]:
    target = "grey" if num_channels == 1 else "RGB"
    if set(kinds) == {target}:
        return []
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    dropped = ", without alpha" if any(kind.endswith(("alpha", "RGBA", "palette")) for kind in kinds) else ""
    return [f"{path}: {counts} images; all are read as {target}{dropped}"]


def _read_header(files: ZipFiles | FolderFiles, name: str) -> image_decoding.ImageHeader:
    """Of a PNG the first bytes suffice, of most other formats the first kilobytes."""
    header = image_decoding.parse_png_header(files.read(name, image_decoding.HEADER_BYTES))
    if header is not None:
        return header
    try:
        return image_decoding.parse_header(files.read(name, 1 << 15))
    except Exception:               # perhaps the header needs more; if the file is broken, the next attempt fails too
        data = files.read(name)
    try:
        return image_decoding.parse_header(data)
    except Exception as error:      # decoders raise whatever they like
        raise broken_image(files, name, error) from error


def broken_image(files: ZipFiles | FolderFiles, name: str, error: Exception) -> DataError:
    """What to raise where decoding ended in `error`."""
    reason = "in no format that Pillow knows" if isinstance(error, PIL.UnidentifiedImageError) else error
    return DataError(f"{files.locate(name)}: a broken image ({reason}); replace it, or remove it and its label")
