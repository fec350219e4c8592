"""The convolutional network of the pose regressor and the scene embedding, and its TorchScript file.

Like every detector it takes images [N, 1 or 3, H, W] with values of 0 to 255, of any size.
"""

from __future__ import annotations

import json
import warnings

import torch
from torch import Tensor, nn

from dnnlib.util import open_whole

METADATA = "metadata.json"               # text that the TorchScript file holds beside the network
FINAL_SIZE = 4                           # pixels per side after the last convolution


def area_weights(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """Weights [size_out, size_in] that shorten a line of pixels by exact area means. Each row sums to 1."""
    edges = torch.arange(size_out + 1, dtype=torch.float32, device=device) * (float(size_in) / float(size_out))
    pixels = torch.arange(size_in, dtype=torch.float32, device=device)[None, :]
    right = torch.minimum(edges[1:, None], pixels + 1.0)
    left = torch.maximum(edges[:-1, None], pixels)
    return (right - left).clamp(min=0.0) * (float(size_out) / float(size_in))


def resize_by_area(images: Tensor, size: int) -> Tensor:
    """Float images [N, C, H, W] -> [N, C, size, size]. A pixel is the mean of the area that it covers: no aliasing."""
    height, width = images.shape[2], images.shape[3]
    if height != size:
        images = torch.matmul(area_weights(height, size, images.device), images)
    if width != size:
        images = torch.matmul(images, area_weights(width, size, images.device).t())
    return images


def _convolution(channels: int, out_channels: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution and its batch normalisation."""
    return (nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False, dtype=torch.float32),
            nn.BatchNorm2d(out_channels, dtype=torch.float32))


class Residual(nn.Module):
    """ReLU(x + conv(conv(x))) with batch normalisation."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class ConvNet(nn.Module):
    """Images -> unit vectors."""

    def __init__(self,
        resolution:     int,            # Images are resized to this; a power of two, 8 or more.
        num_outputs:    int,            # Size of the vectors.
        base_channels:  int = 24,       # Channels after the first convolution. They double at each halving of the size,
        max_channels:   int = 128,      # up to this number.
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
        inner = nn.Linear(channels * FINAL_SIZE ** 2, 128, dtype=torch.float32)
        self.head = nn.Sequential(nn.Flatten(), inner, nn.ReLU(), nn.Linear(128, num_outputs, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """images: [N, 1 or 3, H, W], 0 to 255. Returns unit vectors, float32 [N, num_outputs]."""
        images = images.to(torch.float32)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return self.vectors(resize_by_area(images, self.resolution) / 127.5 - 1.0)

    @torch.jit.export
    def vectors(self, x: Tensor) -> Tensor:
        """x: [N, 3, resolution, resolution], -1 to 1. Returns unit vectors [N, num_outputs]."""
        return nn.functional.normalize(self.head(self.features(x)), dim=1)


def save_network(path: str, network: nn.Module, metadata: dict) -> None:
    """Writes a TorchScript file that holds the network and the metadata. A failure leaves no partial file."""
    network = network.eval().requires_grad_(False).cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # of TorchScript
        scripted = torch.jit.script(network)
        with open_whole(path) as stream:
            torch.jit.save(scripted, stream, _extra_files={METADATA: json.dumps(metadata).encode()})


def read_metadata(text: str) -> dict:
    """The metadata that `save_network` stored, from Detector.extra[METADATA]; {} if the file has none."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
