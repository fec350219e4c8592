"""The files of a data set, in a folder or a zip: read by name, from any thread or process."""

from __future__ import annotations

import functools
import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import PIL.Image

from dnnlib.util import UserError

LABEL_FILE = "dataset.json"
UTF8_NAME = 0x800                        # a flag of a zip's member
ZIP_HINT = "copy or download the file again; `unzip -t FILE` tests one"


class DataError(UserError):
    """A UserError that stays one line when a DataLoader worker raises it.

    torch rebuilds a worker's exception from the text of its traceback, which ends with this class's name and the
    message.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition("DataError: ")[2])


def open_files(path: str | os.PathLike) -> ZipFiles | FolderFiles:
    """The files at `path`. Raises DataError unless it is a folder or a readable zip."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return FolderFiles(path)
    if not os.path.exists(path):
        raise DataError(f"--data={path}: there is no such file or folder; check the path")
    return ZipFiles(path)


# ---------------------------------------------------------------------------------------------------------------------
# Names.

@functools.cache
def extensions() -> frozenset[str]:
    """File name endings, in lower case and with the dot, that Pillow can open."""
    PIL.Image.init()
    return frozenset(ending for ending, name in PIL.Image.EXTENSION.items() if name in PIL.Image.OPEN)


def has_image_ending(name: str) -> bool:
    return name[name.rfind("."):].lower() in extensions()


def plain_name(name: str) -> str:
    """The one spelling of a name: forward slashes, no `./`, accented letters as one character (NFC)."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def by_plain_name(path: str, stored: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """(stored name, entry) -> {plain name: entry}, without files that systems add (hidden files, __MACOSX).

    If dataset.json and all images are below one folder, names are relative to it. Raises DataError for two files with
    the same plain name.
    """
    entries: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for text, entry in stored:
        name = plain_name(text)
        if not name or any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            continue
        if spelled.setdefault(name, text) != text:
            raise DataError(f"--data={path}: {spelled[name]!r} and {text!r} are the same name in two spellings; "
                            "remove or rename one")
        entries[name] = entry
    labels = [name for name in entries if name.endswith("/" + LABEL_FILE)]
    if LABEL_FILE in entries or not labels:
        return entries
    top = min(labels, key=lambda name: (name.count("/"), name)).removesuffix(LABEL_FILE)
    if not all(name.startswith(top) for name in entries if has_image_ending(name)):
        return entries
    return {name.removeprefix(top): entry for name, entry in entries.items() if name.startswith(top)}


# ---------------------------------------------------------------------------------------------------------------------
# Folders and zips.

def walk(path: str) -> tuple[list[str], list[str]]:
    """Files below a folder, with links followed, and links that lead back to a folder above them, which are not. Names
    are relative to the folder.
    """
    def identity(folder: str) -> tuple[int, int]:
        state = os.stat(folder)
        return state.st_dev, state.st_ino

    files, loops = [], []
    above = {path: frozenset([identity(path)])}          # folder to visit -> itself and the folders that lead there
    for folder, subfolders, names in os.walk(path, onerror=_raise, followlinks=True):
        files += [os.path.relpath(os.path.join(folder, name), path) for name in names]
        ours = above.pop(folder)
        for name in list(subfolders):
            subfolder = os.path.join(folder, name)
            its = identity(subfolder)
            if its in ours:
                subfolders.remove(name)
                loops.append(os.path.relpath(subfolder, path))
            else:
                above[subfolder] = ours | {its}
    return files, loops


class FolderFiles:
    """The files below a folder; names are relative to it, with forward slashes."""

    def __init__(self, path: str):
        self.path = path
        try:
            found, loops = walk(path)
        except OSError as error:
            raise DataError(f"--data={path}: cannot list {error.filename}: {error.strerror}; "
                            "check its permissions") from error
        in_utf8 = [os.fsencode(name).decode("utf-8", "surrogateescape") for name in found]
        self._stored = by_plain_name(path, zip(in_utf8, found))
        self.names = list(self._stored)
        self.notes = [f"{self.path}: {min(loops)} leads back to a folder above it; not followed"] if loops else []

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The file's content, or its first `limit` bytes."""
        try:
            with open(self.locate(name), "rb") as stream:
                return stream.read(-1 if limit is None else limit)
        except OSError as error:
            raise DataError(f"{self.locate(name)}: cannot read it: {error.strerror or error}; "
                            "check its permissions and the disk") from error

    def locate(self, name: str) -> str:
        """The file's path, which messages show."""
        return os.path.join(self.path, self._stored.get(name, name))

    def close(self) -> None:
        pass


class ZipFiles:
    """The members of a zip.

    The directory is parsed once and goes along with a pickled copy. Members are read at their offsets, so threads and
    forked processes share no file position.
    """

    def __init__(self, path: str):
        self.path = path
        self.notes: list[str] = []
        self._fd: int | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except zipfile.BadZipFile as error:
            size = os.path.getsize(path)
            raise DataError(f"--data={path}: {size} bytes that are no zip, or one cut short ({error}); "
                            f"{ZIP_HINT}") from error
        except OSError as error:
            raise DataError(f"--data={path}: cannot open it: {error.strerror or error}; "
                            "expected a folder or a readable zip") from error
        for info in infos:
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                what = "encrypted" if info.flag_bits & 1 else f"packed by zip method {info.compress_type}"
                raise DataError(f"{path}: {info.filename}: {what}; expected a plain zip: unpack it and give the "
                                "folder, or repack it with `zip -0 -r`")
        members = [(_member_name(info), info.header_offset, info.compress_size, info.compress_type, info.CRC)
                   for info in infos if not info.filename.endswith("\\")]
        self._members = by_plain_name(path, [(member[0], member) for member in members])
        self.names = list(self._members)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The member's content, which must match its checksum; or its first `limit` bytes, unchecked."""
        _, header_offset, size, method, checksum = self._members[name]
        deflated = method == zipfile.ZIP_DEFLATED
        # Deflate makes data that it cannot shrink longer, by a few bytes per block.
        wanted = size if limit is None else min(size, limit + 64 if deflated else limit)
        try:
            data = self._pread(wanted, self._data_offset(header_offset))
            if deflated:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 0 if limit is None else limit)
        except (OSError, zlib.error) as error:
            raise DataError(f"{self.locate(name)}: the zip is damaged there ({error}); {ZIP_HINT}") from error
        if limit is None and zlib.crc32(data) != checksum:
            raise DataError(f"{self.locate(name)}: the zip is damaged there (wrong checksum); {ZIP_HINT}")
        return data

    def _data_offset(self, header_offset: int) -> int:
        """Where the data start: after the member's own header, whose name and extra field may have other lengths than
        in the directory.
        """
        header = self._pread(30, header_offset)
        if not header.startswith(b"PK\x03\x04"):
            raise OSError(f"no member header at byte {header_offset}")
        return header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))

    def _pread(self, size: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDONLY)
            data = os.pread(self._fd, size, offset)
        else:                            # Windows
            with open(self.path, "rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        if len(data) != size:
            raise OSError(f"the file ends {size - len(data)} bytes early")
        return data

    def locate(self, name: str) -> str:
        """What messages call the member."""
        return f"{self.path}: {self._members[name][0] if name in self._members else name}"

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__, _fd=None)

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)


def _raise(error: OSError) -> None:
    raise error


def _member_name(info: zipfile.ZipInfo) -> str:
    """The member's name. zipfile reads names without the flag for UTF-8 as code page 437, but macOS writes UTF-8."""
    if info.flag_bits & UTF8_NAME or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename
