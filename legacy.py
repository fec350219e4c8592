"""Reads network files: our snapshots and files of the released format, without running anything that they embed.

    networks = legacy.load_network_pkl("network-snapshot-000100.pkl")      # path, address or open file
    G = legacy.load_generator("network-snapshot-000100.pkl")               # its G_ema
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import click
import torch

import dnnlib
from dnnlib import UserError
from torch_utils import persistence, released_format, safe_pickle

NETWORKS = ("G", "D", "G_ema")
KEYS = (*NETWORKS, "augment_pipe", "training_set_kwargs", "camera_stats")

_REMEDY = "expected a network-snapshot-*.pkl"
_OTHER_FILES = (                         # first bytes, what that is
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"PK\x03\x04", "a zip archive (a data set, or torch.save's)"),
    (b"\x1f\x8b", "gzip-compressed; unpack it"), (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"), (b"<", "a web page"),
)


def load_network_pkl(f: str | os.PathLike | BinaryIO, force_fp16: bool = False) -> dict[str, Any]:
    """The networks in a file: dict(G, D, G_ema, augment_pipe, training_set_kwargs, camera_stats), None where it has none.

    f: path, address (http, https, file) or a stream open for reading. force_fp16: rebuild the networks with half precision
    in the four highest resolutions. Raises UserError, one line with the file's name, where it is no network file, is
    damaged, or asks for anything that a network does not need.
    """
    with _opened(f) as (stream, name):
        data = _read(stream, name)
    for key in KEYS:
        data.setdefault(key, None)
    if isinstance(data["augment_pipe"], released_format.Part):             # of a kind that this version does not have
        data["augment_pipe"] = None
    for key in NETWORKS:
        if data[key] is not None and not isinstance(data[key], torch.nn.Module):
            raise UserError(f"{name}: its {key} is no network but {type(data[key]).__name__}; {_REMEDY}")
    if all(data[key] is None for key in NETWORKS):
        raise UserError(f"{name}: holds no network (no G, D or G_ema); {_REMEDY}")
    if force_fp16:
        for key in NETWORKS:
            if data[key] is not None:
                data[key] = persistence.rebuild_like(data[key], num_fp16_res=4, conv_clamp=256).eval().requires_grad_(False)
    return data


def load_generator(f: str | os.PathLike | BinaryIO, force_fp16: bool = False) -> torch.nn.Module:
    """G_ema of the file (G where it has no average), in eval mode, without gradients. Has `camera_stats`: those of the file, or None."""
    data = load_network_pkl(f, force_fp16)
    G = generator_of(data, _name_of(f))
    G.camera_stats = data["camera_stats"]
    return G


def generator_of(data: dict[str, Any], name: str) -> torch.nn.Module:
    """The generator to make images with, among the networks of the file `name`: G_ema, else G. In eval mode, without gradients."""
    G = data["G"] if data["G_ema"] is None else data["G_ema"]
    if G is None:
        raise UserError(f"{name}: holds no generator, only a discriminator; {_REMEDY}")
    return G.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------

def _name_of(f: Any) -> str:
    return str(f) if isinstance(f, (str, os.PathLike)) else str(getattr(f, "name", "the network file"))


@contextlib.contextmanager
def _opened(f: str | os.PathLike | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The stream and what messages call it; a stream that we opened is closed."""
    if not isinstance(f, (str, os.PathLike)):
        yield f, _name_of(f)
        return
    try:
        stream = dnnlib.util.open_url(f)
    except OSError as error:
        raise UserError(f"{_name_of(f)}: cannot be read: {error.strerror or error}") from error
    with stream:
        yield stream, _name_of(f)


def _read(stream: BinaryIO, name: str) -> dict[str, Any]:
    """The dict in a network file."""
    head = stream.read(64)
    if stream.seekable():
        stream.seek(-len(head), os.SEEK_CUR)
    else:
        stream = io.BytesIO(head + stream.read())
    _check_head(head, name)
    try:
        data = safe_pickle.load(stream)
    except UserError as error:
        raise UserError(f"{name}: {error.format_message()}") from error
    except Exception as error:           # a damaged pickle can make the unpickler raise nearly anything
        raise UserError(f"{name}: the file is cut short or damaged ({type(error).__name__}: {error}); copy or download it again") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{name}: holds {type(data).__name__}, not a dict of networks; {_REMEDY}")
    return dict(data)


def _check_head(head: bytes, name: str) -> None:
    """Names the common mistakes. Pickles of protocol 2 and above begin with 0x80 and their protocol."""
    if not head:
        raise UserError(f"{name}: the file is empty; copy or download it again")
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return
    kind = next((kind for start, kind in _OTHER_FILES if head.lstrip().startswith(start)), "a file of another kind")
    raise UserError(f"{name}: not a network file but {kind}; {_REMEDY}")


# ---------------------------------------------------------------------------------------------------------------------

EXAMPLES = """Examples:

\b
  # A file of the released format -> a snapshot of ours, without source code in it.
  python legacy.py --source=stylegan2-ffhq-512x512.pkl --dest=ffhq.pkl
"""


@click.command(epilog=EXAMPLES)
@click.option("--source", help="Network file to read", metavar="PATH|URL", required=True)
@click.option("--dest", help="Snapshot to write", metavar="PATH", required=True)
@click.option("--force-fp16", help="Half precision in the four highest resolutions", type=bool, default=False, show_default=True)
def main(source: str, dest: str, force_fp16: bool) -> None:
    """Converts a network file into one of ours."""
    if not dest.endswith(".pkl"):
        raise UserError(f"--dest={dest}: cannot write that kind of file; expected a name that ends in .pkl")
    folder = os.path.dirname(dest)
    if folder and not os.path.isdir(folder):
        raise UserError(f"--dest={dest}: there is no folder {folder}; create it first")
    data = load_network_pkl(source, force_fp16)
    persistence.save(data, dest)
    for key in NETWORKS:
        if data[key] is not None:
            print(f"{key:<6} {type(data[key]).__module__}.{type(data[key]).__name__}  {sum(p.numel() for p in data[key].parameters()):,} parameters")
    print(f"Wrote {dest}.")


if __name__ == "__main__":
    main()
