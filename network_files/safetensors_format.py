"""Networks as .safetensors: tensors, and a JSON document about them. The form to share: no pickle, no code, no paths.

The file's metadata have one entry, `raycond`:

    {"format": 1,
     "networks": {"G_ema": {"class_name": "training.networks_raycond2.Generator", "init_kwargs": {...},
                            "rays": "pinhole", ...}},
     "camera_stats": {...}, "licence": "CC BY-NC 4.0", "origin": "https://..."}

Tensors are called NETWORK.NAME, such as `G_ema.mapping.fc0.weight`.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from torch import Tensor

from dnnlib.util import UserError, open_whole
from torch_utils import persistence

FORMAT_VERSION = 1
METADATA_KEY = "raycond"
NETWORKS = ("G", "D", "G_ema", "augment_pipe")
NOTES = ("licence", "origin")            # what people who get the file should know
_FLAGS = ("training", "training_differs", "trainable")
_MAX_HEADER = 2 ** 24                    # bytes; that of a large network takes 2 ** 18


def save(data: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes the networks in `data` (as of `network_files.read`), its camera statistics and notes; whole or not at all.
    """
    document: dict[str, Any] = dict(format=FORMAT_VERSION, networks={})
    tensors: dict[str, Tensor] = {}
    for key in NETWORKS:
        if data.get(key) is not None:
            meta = persistence.describe(data[key])
            state = meta["state"]
            tensors.update({f"{key}.{name}": tensor for name, tensor in state["tensors"].items()})
            document["networks"][key] = dict(
                **{entry: meta[entry] for entry in ("class_name", "init_args", "init_kwargs")},
                rays=getattr(data[key], "rays", None), **{flag: state[flag] for flag in _FLAGS})
    document.update({key: data[key] for key in ("camera_stats", *NOTES) if data.get(key) is not None})
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the networks' arguments do not fit into JSON: {error}") from error
    with open_whole(path) as stream:
        stream.write(_library().torch.save(_separate(tensors), metadata={METADATA_KEY: text}))


def load(path: str | os.PathLike) -> dict[str, Any]:
    """The dict that `save` was given, with keys for what the file has. Networks come back in their own precision, even
    if someone has converted the tensors to a smaller one. Raises UserError if the file is not one of ours or is
    damaged.
    """
    with _open(path) as archive:
        document = _document(archive.metadata())
        tensors = _tensors(archive, document["networks"])
    data: dict[str, Any] = {key: document[key] for key in ("camera_stats", *NOTES) if key in document}
    for key, entry in document["networks"].items():
        state = dict({flag: entry.get(flag, ()) for flag in _FLAGS}, tensors=tensors[key])
        meta = dict(type="class", version=persistence.FORMAT_VERSION, state=state, class_name=entry.get("class_name"),
                    init_args=entry.get("init_args", []), init_kwargs=entry.get("init_kwargs", {}))
        data[key] = persistence.rebuild(persistence.apply_import_hooks(meta), kept_dtypes=())
    return data


# ---------------------------------------------------------------------------------------------------------------------

def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("reading and writing .safetensors needs the package safetensors: "
                        "pip install safetensors (or raycond[sharing])") from error
    return safetensors


def _open(path: str | os.PathLike) -> Any:
    library = _library()
    with open(path, "rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
    if header_size > _MAX_HEADER:
        raise UserError(f"not a .safetensors file of a network: it claims a header of {header_size} bytes; "
                        f"expected at most {_MAX_HEADER}")
    try:
        return library.safe_open(os.fspath(path), framework="pt")
    except library.SafetensorError as error:
        raise UserError(f"not a .safetensors file, or cut short or damaged ({str(error)[:100]}); "
                        "copy or download it again") from error


def _document(metadata: dict[str, str] | None) -> dict[str, Any]:
    """The JSON document, whose outer layers have been checked."""
    if METADATA_KEY not in (metadata or {}):
        raise UserError(f"a .safetensors file of another project (no {METADATA_KEY!r} in its metadata); "
                        "expected one that `python legacy.py` has written")
    try:
        document = json.loads(metadata[METADATA_KEY], parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"its metadata are not JSON that can be read ({str(error)[:100]})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT_VERSION:
        raise UserError(f"its metadata are of another format than {FORMAT_VERSION}; "
                        "it may come from a later version of the project")
    networks = document.get("networks")
    fits = isinstance(networks, dict) and all(isinstance(entry, dict) for entry in networks.values())
    if not networks or not fits:
        raise UserError("its metadata describe no network")
    unknown = [key for key in networks if key not in NETWORKS]
    if unknown:
        raise UserError(f"its metadata describe a network {unknown[0][:40]!r}; expected some of {', '.join(NETWORKS)}")
    for entry in networks.values():
        lists = [entry.get(flag, []) for flag in ("training_differs", "trainable")]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            raise UserError("its metadata describe a network whose flags are not lists of names")
    notes = [document.get(key, "") for key in NOTES]
    if not isinstance(document.get("camera_stats", {}), dict) or not all(isinstance(note, str) for note in notes):
        raise UserError(f"its camera_stats, {' or '.join(NOTES)} are of another kind than expected")
    return document


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return float(text)


def _tensors(archive: Any, networks: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """By network and name."""
    found: dict[str, dict[str, Tensor]] = {key: {} for key in networks}
    for full_name in archive.keys():
        key, _, name = full_name.partition(".")
        if key not in found:
            raise UserError(f"it has a tensor {full_name[:80]!r} of no network that its metadata describe")
        found[key][name] = archive.get_tensor(full_name).clone()       # not a view of the file, which may be cut short
    return found


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous on the CPU, each with memory of its own, as the format demands."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        separate[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(separate[name].untyped_storage().data_ptr())
    return separate
