"""The small CNN that the pose regressor and the scene embedding are, and its TorchScript file.

It is called as every detector is: images [N, 1 or 3, H, W] in the range of uint8, of any size.
"""

from __future__ import annotations

import json
import warnings

import torch
from torch import nn

from dnnlib.util import open_whole

METADATA = "metadata.json"               # text beside the network in its file
FINAL_SIZE = 4                           # pixels per side where convolutions end


def area_weights(size_in: int, size_out: int, device: torch.device) -> torch.Tensor:
    """[size_out, size_in]: row i is the share that each input pixel has in the i-th of `size_out` equal parts of a line. Rows sum to 1."""
    edges = torch.arange(size_out + 1, dtype=torch.float32, device=device) * (float(size_in) / float(size_out))
    pixels = torch.arange(size_in, dtype=torch.float32, device=device)[None, :]
    right = torch.minimum(edges[1:, None], pixels + 1.0)
    left = torch.maximum(edges[:-1, None], pixels)
    return (right - left).clamp(min=0.0) * (float(size_out) / float(size_in))


def resize_by_area(images: torch.Tensor, size: int) -> torch.Tensor:
    """Float images [N, C, H, W] -> [N, C, size, size]: each pixel is the mean of the rectangle that it covers, so nothing aliases."""
    height, width = images.shape[2], images.shape[3]
    if height != size:
        images = torch.matmul(area_weights(height, size, images.device), images)
    if width != size:
        images = torch.matmul(images, area_weights(width, size, images.device).t())
    return images


def _convolution(channels: int, out_channels: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution and what normalises its result over the batch."""
    return (nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False, dtype=torch.float32),
            nn.BatchNorm2d(out_channels, dtype=torch.float32))


class Residual(nn.Module):
    """x + conv(conv(x)), normalised over the batch."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class SmallNetwork(nn.Module):
    """Images -> unit vectors."""

    def __init__(self,
        resolution:     int,            # Size that images are brought to; 4 times a power of two.
        num_outputs:    int,            # Length of the vectors.
        base_channels:  int = 24,       # After the first convolution; twice as many at each halving ...
        max_channels:   int = 128,      # ... but at most so many.
    ):
        super().__init__()
        assert resolution >= 2 * FINAL_SIZE and resolution & (resolution - 1) == 0, resolution
        self.resolution = resolution
        layers: list[nn.Module] = [*_convolution(3, base_channels), nn.ReLU()]
        size, channels = resolution, base_channels
        while size > FINAL_SIZE:
            wider = min(2 * channels, max_channels)
            layers += [*_convolution(channels, wider, stride=2), nn.ReLU()]
            size, channels = size // 2, wider
            if size <= 16:
                layers.append(Residual(channels))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(channels * FINAL_SIZE ** 2, 128, dtype=torch.float32), nn.ReLU(),
                                  nn.Linear(128, num_outputs, dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: [N, 1 or 3, H, W] in 0 .. 255. Returns float32 [N, num_outputs] of length 1."""
        images = images.to(torch.float32)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return self.vectors(resize_by_area(images, self.resolution) / 127.5 - 1.0)

    @torch.jit.export
    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        """x: [N, 3, resolution, resolution] in -1 .. 1."""
        return nn.functional.normalize(self.head(self.features(x)), dim=1)


def save_network(path: str, network: nn.Module, metadata: dict) -> None:
    """TorchScript with the metadata inside; whole or not at all."""
    network = network.eval().requires_grad_(False).cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # torch would rather export; detectors are TorchScript files
        scripted = torch.jit.script(network)
        with open_whole(path) as stream:
            torch.jit.save(scripted, stream, _extra_files={METADATA: json.dumps(metadata).encode()})


def read_metadata(text: str) -> dict:
    """What `save_network` stored, from Detector.extra[METADATA]; {} for a file of somebody else's."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
