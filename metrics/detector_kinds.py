"""The kinds of detectors: what they are asked, where their files lie in the cache, how these are made."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from dnnlib.util import UserError, is_url, make_cache_dir_path, open_url
from metrics.scene_ids import read_scene_ids, shows_scenes_again
from metrics.small_network import METADATA
from metrics.stats_cache import data_hash

PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"


@dataclass(frozen=True)
class Kind:
    """A row of the table."""

    name:           str
    uses:           dict[str, dict]                     # Use -> keywords of the call.
    cached_path:    Callable[[dict], str]               # dataset_kwargs -> its place in the cache.
    remedy:         Callable[[dict], str]               # dataset_kwargs -> what to do where there is none, a clause.
    url:            str | None          = None          # Where it is published; then it may be fetched unasked.
    make:           str | None          = None          # Else the function (dataset_kwargs, path, device) that puts it there, by its dotted name, and ...
    require:        str | None          = None          # ... the function (dataset_kwargs) that raises UserError where it cannot be made.
    option:         str | None          = None          # How the user gives a file; None: --detector=NAME=FILE.
    dim:            int | None          = None          # Number of features D that it must have; None: any.
    extra_files:    tuple[str, ...]     = ()            # Text stored in the TorchScript file, for Detector.extra.

    @property
    def flag(self) -> str:
        return self.option or f"--detector={self.name}"

    def call(self, use: str | dict) -> dict:
        """Keywords of the call: of a named use, or given."""
        return self.uses[use] if isinstance(use, str) else use

    @property
    def with_article(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name} detector"


def _published(name: str, file_name: str, uses: dict[str, dict]) -> Kind:
    url = PUBLISHED + file_name

    def cached_path(dataset_kwargs: dict) -> str:
        return make_cache_dir_path("detectors", file_name)

    def remedy(dataset_kwargs: dict) -> str:
        return f"fetch {url} into {cached_path({})} (`python calc_metrics.py prepare` does), or give --detector={name}=FILE"

    return Kind(name=name, uses=uses, cached_path=cached_path, remedy=remedy, url=url)


def _learned(name: str, option: str, module: str, remedy: Callable[[dict], str], dim: int | None = None) -> Kind:
    """One that is learned from a data set by the functions make_detector and require_data of that module. Data are taken as they are, whether the
    network was trained on mirrored ones or not, and so is the place in the cache."""
    stem = module.rpartition(".")[2].replace("_", "-")

    def cached_path(dataset_kwargs: dict) -> str:
        if "path" not in dataset_kwargs:
            raise UserError(f"{option}: the {name} is learned from a data set; say which: --data=ZIP")
        return make_cache_dir_path("detectors", f"{stem}-{data_hash(dataset_kwargs)[:20]}.pt")

    return Kind(name=name, uses={"features": {}}, cached_path=cached_path, remedy=remedy, make=f"{module}.make_detector", require=f"{module}.require_data",
                option=option, dim=dim, extra_files=(METADATA,))


def _pose_remedy(dataset_kwargs: dict) -> str:
    path = dataset_kwargs.get("path", "ZIP")
    return (f"train one with `python calc_metrics.py prepare --metrics=pose_error --data={path}`, or with `python -m metrics.pose_regressor --data={path} "
            "--dest=FILE` and give --pose-regressor=FILE")


def _embedding_remedy(dataset_kwargs: dict) -> str:
    path = dataset_kwargs.get("path")
    if path is None or shows_scenes_again(read_scene_ids(path)):
        path = path or "ZIP"
        return (f"train one with `python calc_metrics.py prepare --metrics=view_consistency --data={path}`, or with `python -m metrics.scene_embedding "
                f"--data={path} --dest=FILE` and give --embedding=FILE")
    return ("give --embedding=FILE, a TorchScript face recogniser (images [N, 3, H, W] in 0 .. 255 -> [N, D]) or what `python -m metrics.scene_embedding` "
            f"makes from data of the same kind with two or more views of each scene ({path} shows no scene twice)")


KINDS = {kind.name: kind for kind in [
    _published("inception", "inception-2015-12-05.pt", {"features": dict(return_features=True), "probabilities": dict(no_output_bias=True)}),
    _published("vgg16", "vgg16.pt", {"features": dict(return_features=True), "lpips": dict(resize_images=False, return_lpips=True)}),
    _learned("pose_regressor", "--pose-regressor", "metrics.pose_regressor", _pose_remedy, dim=3),
    _learned("embedding", "--embedding", "metrics.scene_embedding", _embedding_remedy),
]}


# ---------------------------------------------------------------------------------------------------------------------
# Detectors that somebody names by address, as in StyleGAN3.

def stem_of(address: str) -> str:
    """'https://host/folder/vgg16.pkl' -> 'vgg16'."""
    return os.path.splitext(address.split("/")[-1])[0]


def kind_of(name: str) -> Kind:
    """The row of that name, or that of NVIDIA's address of such a detector, whose pickles hold the networks of our TorchScript files; else a row for
    the TorchScript file at that path or address, called as the caller says.
    """
    if name in KINDS:
        return KINDS[name]
    if (urllib.parse.urlparse(name).hostname or "").endswith(".nvidia.com"):
        for kind in KINDS.values():
            if kind.url is not None and stem_of(name).startswith(kind.name):
                return kind
    return Kind(name=name, uses={"features": {}}, cached_path=lambda _: open_url(name, return_filename=True) if is_url(name, allow_file_urls=True) else name,
                remedy=lambda _: "give the path or address of a TorchScript file", option="detector_url")
