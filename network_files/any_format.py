"""Reads the networks in a file of any known format. Errors are one line that names the file."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

import dnnlib
from dnnlib import UserError
from network_files import known_names, released_format, safetensors_format, tensorflow_format, trusted_source
from torch_utils import persistence

NETWORKS = ("G", "D", "G_ema")
KEYS = (*NETWORKS, "augment_pipe", "training_set_kwargs", "camera_stats")

REMEDY = "expected a network-snapshot-*.pkl or a .safetensors file of this project"
CHECKPOINTS = os.path.join(os.path.dirname(__file__), os.pardir, "checkpoints", "checkpoints.txt")
_OTHER_FILES = (                         # first bytes, what that is
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a zip archive (a data set, or torch.save's)"),
    (b"\x1f\x8b", "gzip-compressed; unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (b"<", "a web page"),
)
_STRANGERS = {                           # names in the file, whose networks that are
    b"TriPlaneGenerator": "networks of EG3D (TriPlaneGenerator, a tri-plane renderer)",
}
_MAX_MESSAGE = 600                       # letters


def read(f: str | os.PathLike | BinaryIO, trust: bool = False) -> dict[str, Any]:
    """dict(G, D, G_ema, augment_pipe, training_set_kwargs, camera_stats) of a network file, None for what it lacks;
    also licence and origin, if it states them.

    f: path, address (http, https, file) or a stream open for reading. trust: run the code in a pickle of other
    projects' networks; never for files of people you do not know. Raises UserError, one line with the file's name, if
    it is not a network file, is damaged, or asks for anything that a network does not need.
    """
    with _opened(f) as (stream, name):
        data = _read(stream, name, trust)
    for key in KEYS:
        data.setdefault(key, None)
    if isinstance(data["augment_pipe"], released_format.Part):             # a kind that this version does not have
        data["augment_pipe"] = None
    for key in NETWORKS:
        if data[key] is not None and not isinstance(data[key], torch.nn.Module):
            raise UserError(f"{name}: its {key} is a {_type(data[key])}, not a network; {REMEDY}")
    for key in ("training_set_kwargs", "camera_stats"):
        if data[key] is not None and not isinstance(data[key], dict):
            raise UserError(f"{name}: its {key} is a {_type(data[key])}, not a dict; {REMEDY}")
    for key in ("G", "G_ema"):
        if persistence.is_persistent(data[key]) and not hasattr(data[key], "synthesis"):
            raise UserError(f"{name}: its {key} is a {_type(data[key])}, which makes no images; {REMEDY}")
    if all(data[key] is None for key in NETWORKS):
        raise UserError(f"{name}: holds no network (no G, D or G_ema); {REMEDY}")
    return data


def name_of(f: Any) -> str:
    """What messages call the file."""
    return str(f) if isinstance(f, (str, os.PathLike)) else str(getattr(f, "name", "the network file"))


def where_from(path: str) -> str:
    """For messages about a missing file: where to get it, if checkpoints/checkpoints.txt lists its name; else ""."""
    with contextlib.suppress(OSError), open(CHECKPOINTS, encoding="utf-8") as stream:
        for line in stream:
            name, *columns = re.split(r"\s{2,}", line.strip())
            if name == os.path.basename(path) and columns and not name.startswith("#"):
                return f"; it comes from {columns[0]}; checkpoints/checkpoints.txt says more"
    return ""


# ---------------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _opened(f: str | os.PathLike | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """(stream, name for messages). Closes the stream if it opened it."""
    name = name_of(f)
    if not isinstance(f, (str, os.PathLike)):
        yield f, name
        return
    try:
        stream = dnnlib.util.open_url(f)
    except UserError as error:
        raise UserError(error.message + where_from(name)) from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from error
    with stream:
        yield stream, name


def _read(stream: BinaryIO, name: str, trust: bool) -> dict[str, Any]:
    """The dict in a network file."""
    head = stream.read(64)
    if stream.seekable():
        stream.seek(-len(head), os.SEEK_CUR)
    else:
        stream = io.BytesIO(head + stream.read())
    try:
        data = _read_format(stream, head, trust)
    except UserError as error:
        message = " ".join(error.format_message().split())         # it may quote the file, or what torch says
        raise UserError(f"{name}: {_stranger(stream)}{message[:_MAX_MESSAGE]}") from error
    except Exception as error:           # a damaged pickle can make the unpickler raise nearly anything
        message = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_MESSAGE]
        raise UserError(f"{name}: the file is cut short or damaged ({message}); copy or download it again") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{name}: holds a {_type(data)}, not a dict of networks; {REMEDY}")
    return dict(data)


def _read_format(stream: BinaryIO, head: bytes, trust: bool) -> Any:
    """head: the first bytes, which tell the format."""
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2 ** 32:       # a length, then JSON
        return _read_safetensors(stream)
    if not head:
        raise UserError("the file is empty; copy or download it again")
    if not (head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5):                  # a pickle and its protocol
        kind = next((kind for start, kind in _OTHER_FILES if head.lstrip().startswith(start)), "a file of another kind")
        raise UserError(f"not a network file but {kind}; {REMEDY}")
    data = trusted_source.load(stream) if trust else known_names.load(stream)
    return tensorflow_format.rebuild(data) if tensorflow_format.is_network(data) else data


def _read_safetensors(stream: BinaryIO) -> dict[str, Any]:
    """The library reads from paths, so streams without one are copied."""
    path = getattr(stream, "name", None)
    is_file = isinstance(stream, io.BufferedReader) and isinstance(path, (str, os.PathLike)) and os.path.isfile(path)
    if is_file and stream.tell() == 0:
        return safetensors_format.load(path)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return safetensors_format.load(copy.name)


def _stranger(stream: BinaryIO) -> str:
    """For messages about a refused pickle: whose networks it holds, if we know their names. The unpickler fails at one
    of their many parts, whose name says less.
    """
    stream.seek(0)
    before = stream.read(1)
    if before != b"\x80":
        return ""
    for piece in iter(lambda: stream.read(1 << 24), b""):
        for name, meaning in _STRANGERS.items():
            if name in before + piece:
                return f"{meaning}, which this project does not have: "
        before = piece[-64:]
    return ""


def _type(value: Any) -> str:
    return type(value).__name__
