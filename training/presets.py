"""The tables of presets (`--cfg`), of the authors' recipes (`--recipe`) and of augmentations. A variant is a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from dnnlib.util import UserError, closest


@dataclass(frozen=True)
class Preset:
    """The defaults of a `--cfg`. Options of train.py override single fields."""

    generator: str                                      # class name
    rays: bool                  = False                 # the generator sees camera rays
    z_dim: int                  = 512
    w_dim: int                  = 512
    mapping_layers: int         = 8
    cbase: int                  = 32768
    cmax: int                   = 512
    G_width: int                = 1                     # factor on both for the generator alone
    glr: float                  = 0.002
    dlr: float                  = 0.002
    batch: int                  = 32
    aug: str                    = "ada"                 # StyleGAN3's defaults of --aug ...
    metrics: tuple[str, ...]    = ("fid50k_full",)      # ... and --metrics, the latter where its detector is at hand
    dcond: str                  = "pose"                # how D learns the camera
    camera_loss: float          = 0.0                   # weight of the camera loss in G's loss ...
    camera_start_kimg: float    = 0.0                   # ... which begins here, when G makes heads that can turn
    gamma: float | None         = None                  # R1 weight; None: by the rule of --gamma=auto
    synthesis_kwargs: tuple     = ()                    # further (name, value) pairs for the generator
    style_mixing_prob: float    = 0.0
    pl_weight: float            = 0.0
    G_reg_interval: int | None  = None
    D_reg_interval: int         = 16
    blur_init_sigma: float      = 0.0
    magnitude_ema: bool         = False                 # G's layers keep the mean square of their inputs
    num_fp16_res: int           = 4
    conv_clamp: float | None    = 256
    default_kimg: int           = 25000


# How this project trains networks with rays (docs/experiments.md), and how the released code does.
_OBEDIENT = dict(rays=True, dcond="both", camera_loss=2.0, camera_start_kimg=1000.0)
PUBLISHED = dict(dcond="pose", camera_loss=0.0)

_STYLEGAN2 = Preset(
    generator           = "training.networks_stylegan2.Generator",
    synthesis_kwargs    = (("fused_modconv_default", "inference_only"),),
    style_mixing_prob   = 0.9,
    pl_weight           = 2.0,
    G_reg_interval      = 4,
)
_RAYCOND2 = replace(_STYLEGAN2, generator="training.networks_raycond2.Generator", **_OBEDIENT)
_STYLEGAN3 = Preset(generator="training.networks_stylegan3.Generator", mapping_layers=2, glr=0.0025, magnitude_ema=True)
_RAYCOND3 = replace(_STYLEGAN3, generator="training.networks_raycond3.Generator", **_OBEDIENT)
_ROTATION = dict(G_width=2, blur_init_sigma=10.0, synthesis_kwargs=(("conv_kernel", 1), ("use_radial_filters", True)))

_TINY = dict(z_dim=128, w_dim=128, mapping_layers=4, cbase=2048, cmax=64, batch=16, aug="noaug", metrics=(),
             default_kimg=100, camera_start_kimg=25.0, glr=0.004, dlr=0.004, gamma=0.05, pl_weight=0.0,
             G_reg_interval=None,
             # Layer noise does not turn with the head, and small images need none.
             synthesis_kwargs=(*_STYLEGAN2.synthesis_kwargs, ("use_noise", False)))

PRESETS: Mapping[str, Preset] = {
    "stylegan2":        _STYLEGAN2,
    "stylegan3-t":      _STYLEGAN3,
    "stylegan3-r":      replace(_STYLEGAN3, **_ROTATION),
    "raycond2":         _RAYCOND2,
    "raycond3-t":       _RAYCOND3,
    "raycond3-r":       replace(_RAYCOND3, **_ROTATION),
    # For two CPU cores and 32 or 64 px: the demo and its heads, and a network to compare them with.
    "stylegan2-tiny":   replace(_STYLEGAN2, **_TINY),
    "raycond2-tiny":    replace(_RAYCOND2, **_TINY),
}


@dataclass(frozen=True)
class Recipe:
    """A training run of the authors. All have batch 32, no augmentation, camera labels and the default metrics."""

    cfg: str
    gamma: float
    gpus: int                                           # that the authors had; see config.choose_gpus
    snap: int                                           # ticks
    resume: str | None = None
    batch: int = 32
    aug: str = "noaug"
    cond: bool = True


_FILE = "checkpoints/%s.pkl"                            # checkpoints/checkpoints.txt says where to get them

RECIPES: Mapping[str, Recipe] = {
    "raycond2-ffhq":      Recipe("raycond2",   gamma=1,   gpus=2, snap=20, resume=_FILE % "stylegan2-ffhq-512x512"),
    "raycond2-ffhq-1024": Recipe("raycond2",   gamma=1,   gpus=2, snap=20, resume=_FILE % "stylegan2-ffhq-1024x1024"),
    "raycond2-afhq":      Recipe("raycond2",   gamma=2.5, gpus=2, snap=40, resume=_FILE % "stylegan2-afhqcat-512x512"),
    "raycond2-cars":      Recipe("raycond2",   gamma=0.3, gpus=8, snap=20),
    "raycond3-t-ffhq":    Recipe("raycond3-t", gamma=10,  gpus=2, snap=20, resume=_FILE % "stylegan3-t-ffhq-1024x1024"),
    "raycond3-t-afhq":    Recipe("raycond3-t", gamma=5,   gpus=2, snap=20, resume=_FILE % "stylegan3-t-afhqv2-512x512"),
    "raycond3-t-cars":    Recipe("raycond3-t", gamma=0.5, gpus=8, snap=40),
}

# For `--augpipe`: groups of transforms, each with the multiplier 1, and the sums of groups that StyleGAN2-ADA tried.
AUGMENTATIONS: Mapping[str, tuple[str, ...]] = {
    "blit":     ("xflip", "rotate90", "xint"),
    "geom":     ("scale", "rotate", "aniso", "xfrac"),
    "color":    ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    "filter":   ("imgfilter",),
    "noise":    ("noise",),
    "cutout":   ("cutout",),
}
AUGMENTATION_SUMS: Mapping[str, str] = {
    "bg":       "blit+geom",
    "bgc":      "blit+geom+color",
    "bgcf":     "blit+geom+color+filter",
    "bgcfn":    "blit+geom+color+filter+noise",
    "bgcfnc":   "blit+geom+color+filter+noise+cutout",
}
MOVING_AUGMENTATIONS = ("blit", "geom")                 # they move the image, so that a camera label no longer fits

Row = TypeVar("Row")


def lookup(table: Mapping[str, Row], name: str, option: str) -> Row:
    """The row called `name`. Raises UserError, with the closest name, if there is none."""
    if name in table:
        return table[name]
    raise UserError(f"{option}={name}: no such name; {closest(name, table)}there are {', '.join(table)}")
