"""Reads network files without running anything that they embed: our snapshots, .safetensors, files of the released format (StyleGAN2-ADA-PyTorch,
StyleGAN3, ray conditioning) and StyleGAN2's from TensorFlow.

    networks = legacy.load_network_pkl("network-snapshot-000100.pkl")      # path, address or open file
    G = legacy.load_generator("heads.safetensors")                         # its G_ema
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import click
import torch

import dnnlib
from dnnlib import UserError, cli
from dnnlib.util import naming, run_program
from torch_utils import persistence, released_format, safe_pickle, sharing, tensorflow_format

NETWORKS = ("G", "D", "G_ema")
KEYS = (*NETWORKS, "augment_pipe", "training_set_kwargs", "camera_stats")

CHECKPOINTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints", "checkpoints.txt")
_REMEDY = "expected a network-snapshot-*.pkl or a .safetensors file of this project"
_OTHER_FILES = (                         # first bytes, what that is
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"PK\x03\x04", "a zip archive (a data set, or torch.save's)"),
    (b"\x1f\x8b", "gzip-compressed; unpack it"), (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"), (b"<", "a web page"),
)
_MAX_MESSAGE = 600                       # letters
_STRANGERS = {b"TriPlaneGenerator": "networks of EG3D (TriPlaneGenerator, a tri-plane renderer)"}         # names in the file


def load_network_pkl(f: str | os.PathLike | BinaryIO, force_fp16: bool = False, trust: bool = False) -> dict[str, Any]:
    """The networks in a file: dict(G, D, G_ema, augment_pipe, training_set_kwargs, camera_stats), None where it has none; and its licence and
    origin, if it states them.

    f: path, address (http, https, file) or a stream open for reading. force_fp16: rebuild the networks with half precision
    in the four highest resolutions. trust: run the code in a pickle of foreign networks; never for files of people you do not know.
    Raises UserError, one line with the file's name, where it is no network file, is damaged, or asks for anything that a network does not need.
    """
    with _opened(f) as (stream, name):
        data = _read(stream, name, trust)
    for key in KEYS:
        data.setdefault(key, None)
    if isinstance(data["augment_pipe"], released_format.Part):             # of a kind that this version does not have
        data["augment_pipe"] = None
    for key in NETWORKS:
        if data[key] is not None and not isinstance(data[key], torch.nn.Module):
            raise UserError(f"{name}: its {key} is no network but {type(data[key]).__name__}; {_REMEDY}")
    for key in ("training_set_kwargs", "camera_stats"):
        if data[key] is not None and not isinstance(data[key], dict):
            raise UserError(f"{name}: its {key} are no dict but {type(data[key]).__name__}; {_REMEDY}")
    for key in ("G", "G_ema"):
        if persistence.is_persistent(data[key]) and not hasattr(data[key], "synthesis"):
            raise UserError(f"{name}: its {key} is a {type(data[key]).__name__}, which makes no images; {_REMEDY}")
    if all(data[key] is None for key in NETWORKS):
        raise UserError(f"{name}: holds no network (no G, D or G_ema); {_REMEDY}")
    if force_fp16:
        for key in NETWORKS:
            if data[key] is not None and not persistence.is_persistent(data[key]):
                raise UserError(f"{name}: its {key} is a network of another project, which force_fp16 does not know; leave that out")
            if data[key] is not None:
                data[key] = persistence.rebuild_like(data[key], num_fp16_res=4, conv_clamp=256).eval().requires_grad_(False)
    return data


def load_generator(f: str | os.PathLike | BinaryIO, force_fp16: bool = False, trust: bool = False) -> torch.nn.Module:
    """G_ema of the file (G where it has no average), in eval mode, without gradients. Has `camera_stats`: those of the file, or None."""
    data = load_network_pkl(f, force_fp16, trust)
    G = generator_of(data, _name_of(f))
    G.camera_stats = data["camera_stats"]
    return G


def generator_of(data: dict[str, Any], name: str) -> torch.nn.Module:
    """The generator to make images with, among the networks of the file `name`: G_ema, else G. In eval mode, without gradients."""
    G = data["G"] if data["G_ema"] is None else data["G_ema"]
    if G is None:
        raise UserError(f"{name}: holds no generator, only a discriminator; {_REMEDY}")
    return G.eval().requires_grad_(False)


trust_option = click.option("--trust", help="Run the code in the file, if it holds networks of another project", is_flag=True)


def warn_of_trust(source: str) -> None:
    """For commands with `trust_option`."""
    print(f"Warning: --trust runs the code that {source} contains, with your rights.", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------

def _name_of(f: Any) -> str:
    return str(f) if isinstance(f, (str, os.PathLike)) else str(getattr(f, "name", "the network file"))


def where_from(path: str) -> str:
    """For messages about a missing file: where to get it, if checkpoints/checkpoints.txt lists its name; else ""."""
    with contextlib.suppress(OSError), open(CHECKPOINTS, encoding="utf-8") as stream:
        for line in stream:
            name, *columns = re.split(r"\s{2,}", line.strip())
            if name == os.path.basename(path) and columns and not name.startswith("#"):
                return f"; it comes from {columns[0]}; checkpoints/checkpoints.txt says more"
    return ""


@contextlib.contextmanager
def _opened(f: str | os.PathLike | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The stream and what messages call it; a stream that we opened is closed."""
    if not isinstance(f, (str, os.PathLike)):
        yield f, _name_of(f)
        return
    try:
        stream = dnnlib.util.open_url(f)
    except UserError as error:
        raise UserError(error.message + where_from(_name_of(f))) from error
    except OSError as error:
        raise UserError(f"{_name_of(f)}: cannot be read: {error.strerror or error}") from error
    with stream:
        yield stream, _name_of(f)


def _read(stream: BinaryIO, name: str, trust: bool) -> dict[str, Any]:
    """The dict in a network file."""
    head = stream.read(64)
    if stream.seekable():
        stream.seek(-len(head), os.SEEK_CUR)
    else:
        stream = io.BytesIO(head + stream.read())
    try:
        if _is_safetensors(head):
            data = _read_safetensors(stream)
        else:
            _check_head(head)
            data = safe_pickle.load(stream, trust=trust)
        if tensorflow_format.is_network(data):
            data = persistence.from_tensorflow(data)
    except UserError as error:
        message = " ".join(error.format_message().split())         # it may quote the file, or what torch says
        raise UserError(f"{name}: {_stranger(stream)}{message[:_MAX_MESSAGE]}") from error
    except Exception as error:           # a damaged pickle can make the unpickler raise nearly anything
        message = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_MESSAGE]
        raise UserError(f"{name}: the file is cut short or damaged ({message}); copy or download it again") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{name}: holds {type(data).__name__}, not a dict of networks; {_REMEDY}")
    return dict(data)


def _stranger(stream: BinaryIO) -> str:
    """For messages: whose networks a pickle that was refused holds, if we know them. They fail at one of their many parts, whose name says less."""
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


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of a length, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2 ** 32


def _read_safetensors(stream: BinaryIO) -> dict[str, Any]:
    """The library reads from paths."""
    path = getattr(stream, "name", None)
    if isinstance(stream, io.BufferedReader) and isinstance(path, (str, os.PathLike)) and os.path.isfile(path) and stream.tell() == 0:
        return sharing.load(path)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return sharing.load(copy.name)


def _check_head(head: bytes) -> None:
    """Names the common mistakes. Pickles of protocol 2 and above begin with 0x80 and their protocol."""
    if not head:
        raise UserError("the file is empty; copy or download it again")
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return
    kind = next((kind for start, kind in _OTHER_FILES if head.lstrip().startswith(start)), "a file of another kind")
    raise UserError(f"not a network file but {kind}; {_REMEDY}")


# ---------------------------------------------------------------------------------------------------------------------

EXAMPLES = """Examples:

\b
  # To share: the averaged generator, no pickle and no code.
  python legacy.py --source=network-snapshot-025000.pkl --dest=heads.safetensors --licence="CC BY 4.0" --origin=https://example.org/heads

\b
  # A file of the released format, or of StyleGAN2's TensorFlow days -> a snapshot of ours, without source code in it.
  python legacy.py --source=stylegan2-ffhq-512x512.pkl --dest=ffhq.pkl
"""


@click.command(cls=cli.Command, epilog=EXAMPLES)
@click.option("--source", help="Network file to read", metavar="PATH|URL", required=True, type=cli.PATH)
@click.option("--dest", help="File to write: .pkl or .safetensors", metavar="PATH", required=True, type=cli.PATH)
@click.option("--what", help="Networks to write  [default: G_ema into .safetensors, all into .pkl]", type=click.Choice(["G_ema", "all"]))
@click.option("--licence", help="Licence of the networks; kept with them", metavar="TEXT", type=cli.TEXT)
@click.option("--origin", help="Where they come from; kept with them", metavar="TEXT", type=cli.TEXT)
@click.option("--force-fp16", help="Half precision in the four highest resolutions", type=bool, default=False, show_default=True)
@trust_option
def main(source: str, dest: str, what: str | None, licence: str | None, origin: str | None, force_fp16: bool, trust: bool) -> None:
    """Converts a network file into one of ours."""
    writer = {".pkl": persistence.save, ".safetensors": sharing.save}.get(os.path.splitext(dest)[1])
    if writer is None:
        raise UserError(f"--dest={dest}: cannot write that kind of file; expected a name that ends in .pkl or .safetensors")
    folder = os.path.dirname(dest)
    if folder and not os.path.isdir(folder):
        raise UserError(f"--dest={dest}: there is no folder {folder}; create it first")
    if trust:
        warn_of_trust(source)
    with naming("--source", source, file_first=True):
        data = load_network_pkl(source, force_fp16, trust)
    if (what or ("G_ema" if writer is sharing.save else "all")) == "G_ema":
        kept = {key: data[key] for key in ("camera_stats", *sharing.NOTES) if key in data}   # not where the training data were
        with naming("--source", source, file_first=True):
            data = dict(dict.fromkeys(KEYS), **kept, G_ema=generator_of(data, source))
    for key in NETWORKS:
        if data[key] is not None and not persistence.is_persistent(data[key]):
            raise UserError(f"--source={source}: its {key} is a network of another project "
                            f"({type(data[key]).__name__}); without its code no file can hold it")
    data.update({key: value for key, value in (("licence", licence), ("origin", origin)) if value is not None})
    try:
        writer(data, dest)
    except OSError as error:
        raise UserError(f"--dest={dest}: cannot be written: {error.strerror or error}; nothing was changed") from error
    for key in NETWORKS:
        if data[key] is not None:
            print(f"{key:<6} {type(data[key]).__module__}.{type(data[key]).__name__}  {sum(p.numel() for p in data[key].parameters()):,} parameters")
    print(f"Wrote {dest}.")


convert_network_pickle = main            # StyleGAN3's name of the command


if __name__ == "__main__":
    run_program(main)
