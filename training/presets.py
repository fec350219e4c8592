"""The table of presets (`--cfg`) and of the recipes that the authors ran (`--recipe`). A variant is a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from dnnlib.util import UserError, closest


@dataclass(frozen=True)
class Preset:
    """What a configuration fixes. Options of train.py override single fields."""

    generator: str                                      # class name
    rays: bool                  = False                 # does the generator see camera rays?
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
    camera_loss: float          = 0.0                   # weight of the camera loss in G's ...
    camera_start_kimg: float    = 0.0                   # ... which begins when there are heads to turn
    gamma: float | None         = None                  # R1 weight; None: by the rule of --gamma=auto
    synthesis_kwargs: tuple     = ()                    # further (name, value) pairs for the generator
    style_mixing_prob: float    = 0.0
    pl_weight: float            = 0.0
    G_reg_interval: int | None  = None
    D_reg_interval: int         = 16
    blur_init_sigma: float      = 0.0
    magnitude_ema: bool         = False                 # do G's layers keep the mean square of their inputs?
    num_fp16_res: int           = 4
    conv_clamp: float | None    = 256
    default_kimg: int           = 25000


# How networks with rays are trained here (docs/experiments.md), and how the released code trains them.
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

_TINY = dict(z_dim=128, w_dim=128, mapping_layers=4, cbase=2048, cmax=64, batch=16, aug="noaug", metrics=(), default_kimg=100,
             camera_start_kimg=25.0, glr=0.004, dlr=0.004, gamma=0.05, pl_weight=0.0, G_reg_interval=None,
             # Layer noise stays where it is while the head turns; so few pixels need none.
             synthesis_kwargs=(*_STYLEGAN2.synthesis_kwargs, ("use_noise", False)))

PRESETS: Mapping[str, Preset] = {
    "stylegan2":        _STYLEGAN2,
    "stylegan3-t":      _STYLEGAN3,
    "stylegan3-r":      replace(_STYLEGAN3, **_ROTATION),
    "raycond2":         _RAYCOND2,
    "raycond3-t":       _RAYCOND3,
    "raycond3-r":       replace(_RAYCOND3, **_ROTATION),
    # For two CPU cores and 32 or 64 px: the demo and its heads, and what they are compared with.
    "stylegan2-tiny":   replace(_STYLEGAN2, **_TINY),
    "raycond2-tiny":    replace(_RAYCOND2, **_TINY),
}


@dataclass(frozen=True)
class Recipe:
    """A training run of the authors: all at batch 32, without augmentation, with camera labels, and the default metrics."""

    cfg: str
    gamma: float
    gpus: int                                           # what the authors had; see config.choose_gpus
    snap: int                                           # ticks
    resume: str | None = None                           # checkpoints/checkpoints.txt says where these come from
    batch: int = 32
    aug: str = "noaug"
    cond: bool = True


RECIPES: Mapping[str, Recipe] = {
    "raycond2-ffhq":        Recipe("raycond2",   gamma=1,   gpus=2, snap=20, resume="checkpoints/stylegan2-ffhq-512x512.pkl"),
    "raycond2-ffhq-1024":   Recipe("raycond2",   gamma=1,   gpus=2, snap=20, resume="checkpoints/stylegan2-ffhq-1024x1024.pkl"),
    "raycond2-afhq":        Recipe("raycond2",   gamma=2.5, gpus=2, snap=40, resume="checkpoints/stylegan2-afhqcat-512x512.pkl"),
    "raycond2-cars":        Recipe("raycond2",   gamma=0.3, gpus=8, snap=20),
    "raycond3-t-ffhq":      Recipe("raycond3-t", gamma=10,  gpus=2, snap=20, resume="checkpoints/stylegan3-t-ffhq-1024x1024.pkl"),
    "raycond3-t-afhq":      Recipe("raycond3-t", gamma=5,   gpus=2, snap=20, resume="checkpoints/stylegan3-t-afhqv2-512x512.pkl"),
    "raycond3-t-cars":      Recipe("raycond3-t", gamma=0.5, gpus=8, snap=40),
}

# What `--augpipe` names: groups of transforms, and the sums of groups that StyleGAN2-ADA tried. Each with the multiplier 1.
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
MOVING_AUGMENTATIONS = ("blit", "geom")                 # they move the image's content, which a camera label does not follow

Row = TypeVar("Row")


def lookup(table: Mapping[str, Row], name: str, option: str) -> Row:
    """The row called `name`; a UserError with the closest name otherwise."""
    if name in table:
        return table[name]
    raise UserError(f"{option}={name}: no such name; {closest(name, table)}there are {', '.join(table)}")
