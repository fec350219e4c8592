"""The public way to load and convert network files. Runs nothing that a file embeds, unless told to; `network_files`
has the formats.

    networks = legacy.load_network_pkl("network-snapshot-000100.pkl")      # path, address or open file
    G = legacy.load_generator("heads.safetensors")                         # its G_ema
"""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

import click
import torch

from dnnlib import UserError, cli
from dnnlib.util import naming, run_program
from network_files import KEYS, NETWORKS, read, safetensors_format
from network_files.any_format import REMEDY, name_of, where_from
from torch_utils import persistence

__all__ = ["KEYS", "NETWORKS", "generator_of", "load_generator", "load_network_pkl", "trust_option", "warn_of_trust",
           "where_from"]


def load_network_pkl(f: str | os.PathLike | BinaryIO, force_fp16: bool = False, trust: bool = False) -> dict[str, Any]:
    """The networks in a file: dict(G, D, G_ema, augment_pipe, training_set_kwargs, camera_stats), None for what it
    lacks; also licence and origin, if it states them.

    f: path, address (http, https, file) or a stream open for reading. force_fp16: rebuild the networks with half
    precision in the four highest resolutions. trust: run the code in a pickle of other projects' networks; never for
    files of people you do not know. Raises UserError, one line, as `network_files.read` does.
    """
    data = read(f, trust)
    if force_fp16:
        for key in NETWORKS:
            if data[key] is not None and not persistence.is_persistent(data[key]):
                raise UserError(f"{name_of(f)}: its {key} is a network of another project, "
                                "which force_fp16 does not know; leave that out")
            if data[key] is not None:
                half = persistence.rebuild_like(data[key], num_fp16_res=4, conv_clamp=256)
                data[key] = half.eval().requires_grad_(False)
    return data


def load_generator(f: str | os.PathLike | BinaryIO, force_fp16: bool = False, trust: bool = False) -> torch.nn.Module:
    """G_ema of the file (G if it has no average), in eval mode, without gradients. `camera_stats`: the file's, or None.
    """
    data = load_network_pkl(f, force_fp16, trust)
    G = generator_of(data, name_of(f))
    G.camera_stats = data["camera_stats"]
    return G


def generator_of(data: dict[str, Any], name: str) -> torch.nn.Module:
    """The generator that makes images, among the networks of the file `name`: G_ema, else G. In eval mode, without
    gradients.
    """
    G = data["G"] if data["G_ema"] is None else data["G_ema"]
    if G is None:
        raise UserError(f"{name}: holds no generator, only a discriminator; {REMEDY}")
    return G.eval().requires_grad_(False)


trust_option = click.option("--trust", is_flag=True,
                            help="Run the code in the file, if it holds networks of another project")


def warn_of_trust(source: str) -> None:
    """For commands with `trust_option`."""
    print(f"Warning: --trust runs the code that {source} contains, with your rights.", file=sys.stderr)


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
def main(source: str, dest: str, what: str | None, licence: str | None, origin: str | None, force_fp16: bool,
         trust: bool) -> None:
    """Converts a network file into one of ours."""
    writer = {".pkl": persistence.save, ".safetensors": safetensors_format.save}.get(os.path.splitext(dest)[1])
    if writer is None:
        raise UserError(f"--dest={dest}: cannot write that kind of file; "
                        "expected a name that ends in .pkl or .safetensors")
    folder = os.path.dirname(dest)
    if folder and not os.path.isdir(folder):
        raise UserError(f"--dest={dest}: there is no folder {folder}; create it first")
    if trust:
        warn_of_trust(source)
    with naming("--source", source, file_first=True):
        data = load_network_pkl(source, force_fp16, trust)
    if (what or ("G_ema" if writer is safetensors_format.save else "all")) == "G_ema":
        kept = {key: data[key] for key in ("camera_stats", *safetensors_format.NOTES) if key in data}   # not data paths
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
            class_name = f"{type(data[key]).__module__}.{type(data[key]).__name__}"
            print(f"{key:<6} {class_name}  {sum(p.numel() for p in data[key].parameters()):,} parameters")
    print(f"Wrote {dest}.")


convert_network_pickle = main            # StyleGAN3's name of the command


if __name__ == "__main__":
    run_program(main)
