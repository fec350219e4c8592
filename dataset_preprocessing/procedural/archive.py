"""Writes an image data set as an EG3D zip or folder. It gets its name when it is whole."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from dnnlib.util import UserError


def check_dest(dest: str, force: bool) -> None:
    """Raises UserError if `dest` cannot be written, or exists and `force` is not given."""
    if not dest:
        raise UserError("--dest is empty; give the name of a .zip file or of a folder")
    parent = os.path.dirname(os.path.abspath(dest))
    if not os.path.isdir(parent):
        raise UserError(f"--dest={dest}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"--dest={dest}: no permission to write in {parent}")
    if not os.path.exists(dest) or (os.path.isdir(dest) and not is_zip(dest) and not os.listdir(dest)):
        return
    if not force:
        raise UserError(f"--dest={dest} exists; give another name, or --force to replace it")
    if os.path.isdir(dest) != (not is_zip(dest)):
        there, wanted = "file", "folder (a name that ends in .zip gives a zip)"
        if is_zip(dest):
            there, wanted = "folder", "file"
        raise UserError(f"--dest={dest} is a {there}, expected a {wanted}; give another name")
    if os.path.isdir(dest) and not os.path.isfile(os.path.join(dest, "dataset.json")):
        raise UserError(f"--dest={dest} is a folder without dataset.json, so no data set that --force may replace; "
                        "give another name")


def is_zip(dest: str) -> bool:
    return dest.lower().endswith(".zip")


@contextmanager
def open_archive(dest: str) -> Iterator[_Zip | _Folder]:
    """A writer with `add(name, data)` and `add_json(name, value)`. `dest` appears when the block ends without error."""
    dest = os.path.abspath(dest)
    part = f"{dest}.{os.getpid()}.part"
    writer = _Zip(part) if is_zip(dest) else _Folder(part)
    try:
        yield writer
        writer.finish()
        _replace(part, dest)
    except BaseException:
        writer.abandon()
        raise


class _Writer:
    def add_json(self, name: str, value: object) -> None:
        self.add(name, json.dumps(value).encode())


class _Zip(_Writer):
    def __init__(self, path: str):
        self.path = path
        self.zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def add(self, name: str, data: bytes) -> None:
        # A ZipInfo made by hand has a constant date, so that equal data sets are equal files.
        self.zip.writestr(zipfile.ZipInfo(name), data)

    def finish(self) -> None:
        self.zip.close()
        with open(self.path, "rb+") as stream:
            os.fsync(stream.fileno())

    def abandon(self) -> None:
        try:
            self.zip.close()
        except OSError:             # a full disk again; still remove the file
            pass
        if os.path.exists(self.path):
            os.remove(self.path)


class _Folder(_Writer):
    def __init__(self, path: str):
        self.path = path
        os.mkdir(path)

    def add(self, name: str, data: bytes) -> None:
        path = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(data)

    def finish(self) -> None:
        os.sync()

    def abandon(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _replace(part: str, dest: str) -> None:
    """Gives `part` its final name. Moves an existing folder aside first and removes it last."""
    if not os.path.isdir(dest):
        os.replace(part, dest)
        return
    old = part + ".old"
    os.rename(dest, old)
    try:
        os.rename(part, dest)
    except OSError:
        os.rename(old, dest)
        raise
    shutil.rmtree(old)
