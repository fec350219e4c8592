"""Generates images from seeds, for networks with cameras from any camera."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

import camera_utils
import legacy
from dnnlib import UserError, cli
from dnnlib.util import naming, run_program
from torch_utils import memory
from torch_utils.distributed import choose_device
from training.run.snapshots import save_image, save_image_grid, to_uint8

MAX_SEED = 2 ** 32 - 1
PIXELS_PER_PASS = 2 ** 22                # images per pass = this / resolution^2, at most 16

EXAMPLES = """Examples:

\b
  # Eight latents, seen from the mean camera of the network's training data.
  python gen_images.py --network=network-snapshot-000100.pkl --seeds=0-7 --trunc=0.7 --outdir=out

\b
  # From left to right, with a contact sheet: a row per latent, a column per camera.
  python gen_images.py --network=network-snapshot-000100.pkl --seeds=0-3 --yaw=-0.4,-0.2,0,0.2,0.4 --grid --outdir=out

\b
  # A released network knows no cameras of its own: take those of its data set.
  python gen_images.py --network=raycond2-ffhq-512x512.pkl --cameras=ffhq --yaw=-0.3,0.3 --pitch=0,0.2 --seeds=1,4-6 --outdir=out

\b
  # A network of classes.
  python gen_images.py --network=cifar10.pkl --seeds=0-35 --class=3 --outdir=out
"""


# ---------------------------------------------------------------------------------------------------------------------
# Options.

def parse_seeds(ctx: Any, param: Any, text: str) -> list[int]:
    """'0,4-6' -> [0, 4, 5, 6]."""
    seeds: list[int] = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        numbers = [first, last] if dash else [first]
        if not all(number.strip().isdecimal() for number in numbers) or max(map(int, numbers)) > MAX_SEED:
            raise UserError(f"--seeds={text}: {item!r} is neither a seed (0 to {MAX_SEED}) nor a range; expected a list such as 0,1,4-6")
        start, stop = int(numbers[0]), int(numbers[-1])
        if stop < start:
            raise UserError(f"--seeds={text}: the range {item!r} is empty; expected the smaller seed first")
        seeds.extend(range(start, stop + 1))
    return seeds


def parse_numbers(ctx: Any, param: Any, text: str | None) -> list[float] | None:
    """'-0.4,0,0.4' -> [-0.4, 0.0, 0.4]."""
    if text is None:
        return None
    try:
        numbers = [float(item) for item in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"--{param.name}={text}: expected numbers separated by commas")
    return numbers


def parse_angles(ctx: Any, param: Any, text: str | None) -> list[float] | None:
    """As `parse_numbers`; angles that no camera has are refused, for they are degrees."""
    angles_rad = parse_numbers(ctx, param, text)
    limit = math.pi / 2 if param.name == "pitch" else 2 * math.pi
    for angle in angles_rad or []:
        if abs(angle) > limit + 1e-6:
            raise UserError(f"--{param.name}={text}: {angle:g} is beyond +-{limit:.4f}; angles are in radians "
                            f"({angle:g} degrees are {math.radians(angle):.4f})")
    return angles_rad


def parse_vector(ctx: Any, param: Any, text: str) -> tuple[float, float]:
    """'0.3,1' -> (0.3, 1.0)."""
    numbers = parse_numbers(ctx, param, text)
    if numbers is None or len(numbers) != 2:
        raise UserError(f"--{param.name}={text}: expected two numbers, such as 0.3,1")
    return numbers[0], numbers[1]


def said(name: str, value: object) -> str:
    """An option as the user gave it: --yaw=-0.4,0."""
    value = ",".join(f"{number:g}" for number in value) if isinstance(value, list) else value
    return f"--{name.replace('_', '-')}={value}"


# ---------------------------------------------------------------------------------------------------------------------
# Labels.

def choose_cameras(yaw: list[float] | None, pitch: list[float] | None, cameras: str | None, camera_file: str | None,
                   stats: dict | None) -> camera_utils.Camera:
    """The cameras that the options ask for: those of a file, or every pitch with every yaw (which runs fastest).

    Angles left out are those of the middle of the data set `cameras`, or the mean ones of the snapshot's `stats`.
    """
    if camera_file is not None:
        if yaw is not None or pitch is not None or cameras is not None:
            angles = dict(yaw=yaw, pitch=pitch, cameras=cameras)
            others = " ".join(said(name, value) for name, value in angles.items() if value is not None)
            raise UserError(f"--camera-file={camera_file}: excludes {others}, since both describe cameras; give one "
                            "or the other")
        with naming("--camera-file", camera_file):
            return camera_utils.load_camera_file(camera_file)
    if cameras is not None:
        try:
            row = camera_utils.dataset_cameras(cameras)
        except UserError as error:
            raise UserError(f"--cameras={cameras}: {error.format_message()}") from error
        front = sum(row.yaw_range) / 2, sum(row.pitch_range) / 2
        warn_of_other_cameras(row, stats)
    elif stats is not None:
        front = stats["yaw_mean"], stats["pitch_mean"]
    else:
        raise UserError("--network: the file has no statistics of its training cameras; "
                        f"give --cameras={'|'.join(camera_utils.DATASETS)} or --camera-file")
    pairs = [(y, p) for p in pitch or [front[1]] for y in yaw or [front[0]]]
    yaw_rad, pitch_rad = torch.tensor(pairs, dtype=torch.float32).unbind(dim=1)                   # [views] each
    return row.camera(yaw_rad, pitch_rad) if cameras is not None else camera_utils.Camera.from_stats(stats, yaw_rad, pitch_rad)


def warn_of_other_cameras(row: camera_utils.DatasetCameras, stats: dict | None) -> None:
    """One line on stderr where the snapshot's `stats` contradict the data set's row."""
    differences = row.differences(stats) if stats is not None else []
    if differences:
        here, there = (", ".join(f"{entry[0]} {entry[side]}" for entry in differences) for side in (1, 2))
        print(f"Warning: --cameras={row.name} has {here}, the cameras that the network was trained on have {there}; "
              "leave --cameras out for those", file=sys.stderr)


def choose_labels(G: torch.nn.Module, class_idx: int | None, camera_options: dict[str, Any], stats: dict | None) -> torch.Tensor:
    """The labels [views, c_dim] under which each latent is shown: cameras, one class, or a single empty label."""
    given = [said(name, value) for name, value in camera_options.items() if value is not None]
    sees_rays = hasattr(G, "rays")
    if class_idx is not None:
        if G.c_dim == 0 or sees_rays:
            raise UserError(f"--class={class_idx}: the network knows {'cameras' if sees_rays else 'no classes'}; leave the option out")
        if given:
            raise UserError(f"{given[0]}: excludes --class={class_idx}, since a label is either a camera or a class")
        if class_idx >= G.c_dim:
            raise UserError(f"--class={class_idx}: the network has {G.c_dim} classes, counted from 0")
        return torch.nn.functional.one_hot(torch.tensor([class_idx], dtype=torch.int64), G.c_dim).float()
    if G.c_dim == camera_utils.LABEL_DIM and not (sees_rays or given or stats):
        raise UserError(f"--network: its labels have {G.c_dim} numbers and nothing says what they are; "
                        f"give a camera (--cameras={'|'.join(camera_utils.DATASETS)}, --camera-file) or --class")
    if G.c_dim == camera_utils.LABEL_DIM:
        return choose_cameras(**camera_options, stats=stats).to_label().float()
    if given:
        raise UserError(f"{given[0]}: the network was trained without cameras (its labels have {G.c_dim} numbers, a camera {camera_utils.LABEL_DIM})")
    if G.c_dim > 0:
        raise UserError(f"--class: the network is conditional and needs one of its {G.c_dim} classes; give --class=0 to {G.c_dim - 1}")
    return torch.zeros([1, 0], dtype=torch.float32)


def move_image(G: torch.nn.Module, translate: tuple[float, float], rotate_deg: float) -> None:
    """Tells a StyleGAN3 network to shift (in image widths) and turn its output. Raises UserError for others unless both are zero."""
    target = getattr(getattr(G.synthesis, "input", None), "transform", None)
    if target is None:
        if any(translate) or rotate_deg:
            option = f"--translate={translate[0]:g},{translate[1]:g}" if any(translate) else f"--rotate={rotate_deg:g}"
            raise UserError(f"{option}: only StyleGAN3 networks can move their image; leave the option out")
        return
    # The transform acts on the coordinates at which the input is sampled, so it is the inverse of what the image does.
    target.copy_(torch.from_numpy(np.linalg.inv(make_transform(translate, rotate_deg))))


def make_transform(translate: tuple[float, float], angle: float) -> np.ndarray:
    """The shift [image widths] and turn [degrees] of an image as a matrix [3, 3]."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cos, sin, translate[0]], [-sin, cos, translate[1]], [0, 0, 1]])


# ---------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def generate(G: torch.nn.Module, seeds: list[int], labels: torch.Tensor, batch: int, **kwargs: Any) -> Any:
    """Yields images, uint8 [C, H, W] on the CPU: for each seed all labels [views, c_dim]. kwargs: for G."""
    device = next(G.parameters()).device
    pairs = [(seed, view) for seed in seeds for view in range(len(labels))]
    for start in range(0, len(pairs), batch):
        chunk = pairs[start : start + batch]
        z = np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed, _ in chunk])
        c = labels[[view for _, view in chunk]].to(device)
        images = G(torch.from_numpy(z).to(device, torch.float32), c, **kwargs)
        yield from to_uint8(images).cpu().numpy()


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
@click.option("--network",      help="Network file: a path or an address", metavar="PATH|URL", required=True, type=cli.PATH)
@click.option("--seeds",        help="Seeds of the latents, such as 0,1,4-6", metavar="LIST", callback=parse_seeds, required=True)
@click.option("--outdir",       help="Where the images go", metavar="DIR", required=True, type=cli.PATH)
@click.option("--trunc",        help="Truncation psi; smaller: nearer to the average image", type=float, default=1)
@click.option("--class", "class_idx", help="Class, for networks of classes", type=click.IntRange(min=0))
@click.option("--noise-mode",   help="Noise inputs of StyleGAN2", type=click.Choice(["const", "random", "none"]), default="const")
@click.option("--translate",    help="Shift of the image in image widths (StyleGAN3)", metavar="X,Y", default="0,0", callback=parse_vector)
@click.option("--rotate",       help="Rotation of the image in degrees (StyleGAN3)", metavar="ANGLE", type=float, default=0)
# Cameras.
@click.option("--yaw",          help="Angles [rad] from the front, > 0 towards +x  [default: the mean]", metavar="LIST", callback=parse_angles)
@click.option("--pitch",        help="Elevations [rad], each of which meets every yaw  [default: the mean]", metavar="LIST", callback=parse_angles)
@click.option("--cameras",      help=f"Cameras like those of {', '.join(camera_utils.DATASETS)}  [default: of the training data]", metavar="NAME")
@click.option("--camera-file",  help="Cameras from JSON: 25 numbers, a list of such lists, or labels by name (dataset.json)", metavar="FILE", type=cli.PATH)
# Output.
@click.option("--grid",         help="Also write grid.png: a row per latent, a column per camera", is_flag=True)
@legacy.trust_option
@click.option("--batch",        help="Images per pass; fewer need less memory  [default: by resolution]", type=click.IntRange(min=1))
@cli.device_option
def main(network: str, seeds: list[int], outdir: str, trunc: float, class_idx: int | None, noise_mode: str, translate: tuple[float, float],
         rotate: float, grid: bool, trust: bool, batch: int | None, device: str, **camera_options: Any) -> None:
    """Generate images: seed0000.png, or seed0000-view00.png and so on for several cameras."""
    memory.keep_freed()
    target = torch.device(choose_device(device))
    print(f"Loading {network} ...")
    if trust:
        legacy.warn_of_trust(network)
    with naming("--network", network, file_first=True):
        networks = legacy.load_network_pkl(network, trust=trust)
        G = legacy.generator_of(networks, network).to(target)
        labels = choose_labels(G, class_idx, camera_options, networks["camera_stats"])
    move_image(G, translate, rotate)
    try:
        os.makedirs(outdir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--outdir={outdir}: cannot create that folder: {error.strerror or error}; give another one") from error

    views = len(labels)
    names = [f"seed{seed:04d}" + (f"-view{view:02d}" if views > 1 else "") + ".png" for seed in seeds for view in range(views)]
    batch = batch or max(1, min(16, PIXELS_PER_PASS // G.img_resolution ** 2))
    images = generate(G, seeds, labels, batch, truncation_psi=trunc, noise_mode=noise_mode)
    kept = []
    for name, image in zip(names, tqdm(images, total=len(names), unit="image", disable=None)):
        save_image(image, os.path.join(outdir, name))
        if grid:
            kept.append(image)
    if grid:
        save_image_grid(np.stack(kept), os.path.join(outdir, "grid.png"), (views, len(seeds)))
    print(f"Wrote {len(names)} image{'s' if len(names) != 1 else ''}{' and grid.png' if grid else ''} to {outdir}.")


# ---------------------------------------------------------------------------------------------------------------------
# StyleGAN3's names for parts of this command. Scripts of its users import them, the parsers as click types.

generate_images = main


def parse_range(s: str | list[int]) -> list[int]:
    """'0,4-6' -> [0, 4, 5, 6]; a list is what it is."""
    return s if isinstance(s, list) else parse_seeds(None, None, s)


def parse_vec2(s: str | tuple[float, float]) -> tuple[float, float]:
    """'0.3,1' -> (0.3, 1.0); a tuple is what it is."""
    return s if isinstance(s, tuple) else parse_vector(None, click.Option(["--translate"]), s)


if __name__ == "__main__":
    run_program(main)
