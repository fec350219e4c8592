"""Augmentation of all images that the discriminator sees (Karras et al. 2020a, Training Generative Adversarial Networks
with Limited Data, appendix B). Its parts are `geometry`, `color` and `image_space`; `transforms` has what they share.

    pipe = AugmentPipe(brightness=1, contrast=1)
    pipe.p.fill_(0.3)
    images = pipe(images)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_utils import misc, persistence
from training.augment import color, geometry, image_space
from training.augment.image_space import octave_filters, symlet
from training.augment.transforms import DrawSource, PercentileDraws

__all__ = ["AugmentPipe", "DrawSource", "PercentileDraws"]

NUM_BANDS = 4


@persistence.persistent_class
class AugmentPipe(misc.KeepsFilters):
    """Applies each transform with probability p times its multiplier, independently for each image. All are off by
    default.

    Buffers: `p` (starts at 1; the training run changes it), `Hz_geom` and `Hz_fbank`, the filters for resampling and
    for octave bands. `p` always stays on the CPU, which decides what is applied; a call never synchronises the device.
    Differentiable twice in the images.
    """

    FILTERS = ("Hz_geom", "Hz_fbank")

    def __init__(self,
        # Moves whole pixels.
        xflip:              float           = 0,            # Multiplier: mirrors left and right.
        rotate90:           float           = 0,            # Multiplier: quarter turns.
        xint:               float           = 0,            # Multiplier: shifts by whole pixels.
        xint_max:           float           = 0.125,        # Largest such shift, relative to the image.
        # Any affine map.
        scale:              float           = 0,            # Multiplier: zooms.
        rotate:             float           = 0,            # Multiplier: rotates by any angle.
        aniso:              float           = 0,            # Multiplier: stretches in one direction, shrinks across it.
        xfrac:              float           = 0,            # Multiplier: shifts by any distance.
        scale_std:          float           = 0.2,          # Of log2 of the zoom.
        rotate_max:         float           = 1,            # Largest angle; 1: half a turn.
        aniso_std:          float           = 0.2,          # Of log2 of the stretch.
        xfrac_std:          float           = 0.125,        # Of the shift, relative to the image.
        # Colour.
        brightness:         float           = 0,            # Multiplier: adds to all channels.
        contrast:           float           = 0,            # Multiplier: multiplies all channels.
        lumaflip:           float           = 0,            # Multiplier: swaps light and dark, keeps the hue.
        hue:                float           = 0,            # Multiplier: turns the hue.
        saturation:         float           = 0,            # Multiplier: changes the distance from grey.
        brightness_std:     float           = 0.2,          # Of what is added; images reach from -1 to 1.
        contrast_std:       float           = 0.5,          # Of log2 of the factor.
        hue_max:            float           = 1,            # Largest angle; 1: half a turn.
        saturation_std:     float           = 1,            # Of log2 of the factor.
        # Filtering.
        imgfilter:          float           = 0,            # Multiplier: changes the bands of spatial frequency.
        imgfilter_bands:    Sequence[float] = (1, 1, 1, 1), # Further multiplier of each band, the lowest first.
        imgfilter_std:      float           = 1,            # Of log2 of a band's factor.
        # Corruption.
        noise:              float           = 0,            # Multiplier: adds noise.
        cutout:             float           = 0,            # Multiplier: cuts out a rectangle.
        noise_std:          float           = 0.1,          # Of the noise's own standard deviation.
        cutout_size:        float           = 0.5,          # Sides of the rectangle, relative to the image's.
    ):
        # Each argument becomes an attribute.
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, tuple(map(float, value)) if name == "imgfilter_bands" else float(value))
        assert len(self.imgfilter_bands) == NUM_BANDS, \
            f"imgfilter_bands {imgfilter_bands}, expected {NUM_BANDS} numbers"
        self.register_buffer("p", torch.ones([], dtype=torch.float32))
        self.register_buffer("Hz_geom", torch.as_tensor(symlet(6), dtype=torch.float32))
        self.register_buffer("Hz_fbank", torch.as_tensor(octave_filters(2, NUM_BANDS), dtype=torch.float32))

    @misc.own_precision
    def forward(self,
        images:             Tensor,                         # [N, C, H, W] in -1 .. 1.
        debug_percentile:   float | None        = None,     # Apply all to all images, with draws at this percentile.
        draws:              DrawSource | None   = None,     # None: torch's global generators.
    ) -> Tensor:                                            # [N, C, H, W], dtype and device of images.
        assert images.ndim == 4 and images.is_floating_point(), \
            f"images {list(images.shape)} of {images.dtype}, expected [N, C, H, W] floating point"
        batch, channels, height, width = images.shape
        p = float(self.p)
        if batch == 0 or (p == 0 and debug_percentile is None):
            return images
        source = DrawSource() if draws is None else draws
        if debug_percentile is not None:
            source = PercentileDraws(debug_percentile)

        images = geometry.resample(images, geometry.draw_inverse(self, source, p, batch, width, height), self.Hz_geom)
        images = color.recolor(images, color.draw_map(self, source, p, batch, channels))
        images = image_space.filter_bands(images, image_space.draw_gains(self, source, p, batch), self.Hz_fbank)
        images = image_space.add_noise(images, self, source, p)
        return image_space.cut_out(images, self, source, p)

    def _apply(self, *args: Any, **kwargs: Any) -> AugmentPipe:
        """torch calls this in .to(), .cuda() and the like."""
        p = self.p
        super()._apply(*args, **kwargs)
        if p.device.type == "cpu" != self.p.device.type:
            self.p = p
        return self
