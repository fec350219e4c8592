"""Detectors and networks that the tests of the metrics share."""

import json

import pytest
import torch

from metrics import metric_main, metric_utils
from torch_utils import distributed
from training import networks_raycond2, networks_raycond3, networks_stylegan2, networks_stylegan3


def data(path, labels=True, **kwargs):
    """Arguments of a data set."""
    return dict(class_name="training.dataset.ImageFolderDataset", path=str(path), use_labels=labels, **kwargs)


def options(G, path, detector, labels=True, **kwargs):
    """Of MetricOptions; the one detector serves as both."""
    return dict(G=G, dataset_kwargs=data(path, labels), detectors=dict(inception=detector, vgg16=detector), device="cpu", progress=False, **kwargs)


def value(name, **kwargs):
    """The first number of that metric."""
    results = metric_main.calc_metric(name, **kwargs).results
    return next(value for value in results.values() if not isinstance(value, str))


class TinyDetector(torch.nn.Module):
    """Has all keywords of both published detectors."""

    def __init__(self, width: int = 8):
        super().__init__()
        torch.manual_seed(1)
        self.conv = torch.nn.Conv2d(3, width, 3, padding=1)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False, resize_images: bool = True,
                return_lpips: bool = False) -> torch.Tensor:
        x = self.conv(img / 127.5 - 1).sin()
        x = torch.cat([x.mean(dim=[2, 3]), x.amax(dim=[2, 3])], dim=1)
        return torch.softmax(4 * x, dim=1) if no_output_bias else x


def save_detector(path, module=None):
    torch.jit.script(TinyDetector() if module is None else module).save(str(path))
    return str(path)


def stylegan2(c_dim=0, cls=networks_stylegan2.Generator, res=16, **kwargs):
    torch.manual_seed(2)
    G = cls(z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=res, img_channels=3, mapping_kwargs=dict(num_layers=2), channel_base=128, channel_max=8, **kwargs)
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.3)                            # so that noise can be told
    return G.eval().requires_grad_(False)


def raycond2(**kwargs):
    return stylegan2(25, networks_raycond2.Generator, rays="pinhole", **kwargs)


def stylegan3(c_dim=0, cls=networks_stylegan3.Generator, res=32, **kwargs):
    torch.manual_seed(3)
    G = cls(z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=res, img_channels=3, mapping_kwargs=dict(num_layers=1), channel_base=256, channel_max=16,
            num_layers=4, **kwargs)
    return G.eval().requires_grad_(False)


def raycond3(rays="pinhole", **kwargs):
    return stylegan3(25, networks_raycond3.Generator, rays=rays, **kwargs)


def assert_same_results(found, expected, rel=1e-6):
    """Numbers to `rel`, words to the letter."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=rel, abs=1e-9)), name


def ranks(opts):
    """A metric written for StyleGAN3: five numbers from two ranks in turn, and who computed it."""
    stats = metric_utils.FeatureStats(capture_all=True, max_items=5)
    while not stats.is_full():
        stats.append_torch(torch.tensor([[float(opts.rank)], [opts.rank + 10.0]]), num_gpus=opts.num_gpus, rank=opts.rank)
    return dict(digits=float(stats.get_all()[:, 0] @ [1, 100, 1e4, 1e6, 1e8]), rank=opts.rank)


def worker(rank, address, kwargs, names, path):
    """One of two processes; the second writes what it got."""
    torch.set_num_threads(1)
    distributed.init(rank, 2, torch.device("cpu"), init_method=address)
    metric_main.register_metric(ranks)
    results = [dict(metric_main.calc_metric(name, rank=rank, num_gpus=2, **kwargs).results) for name in names]
    if rank == 1:
        with open(path, "w") as stream:
            json.dump(results, stream)
    distributed.shutdown()
