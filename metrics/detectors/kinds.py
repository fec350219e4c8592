"""The kinds of detectors: how metrics call them, where their files lie in the cache, and where these come from."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from dnnlib.util import UserError, is_url, make_cache_dir_path, open_url
from metrics.detectors import pose_regressor, scene_embedding
from metrics.detectors.convnet import METADATA
from metrics.detectors.dataset import data_hash, read_scene_ids, shows_scenes_again

PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"


@dataclass(frozen=True)
class Kind:
    """A row of the table. dataset_kwargs are those of the real images."""

    name:           str
    uses:           dict[str, dict]                     # Use -> keywords of the call.
    cached_path:    Callable[[dict], str]               # dataset_kwargs -> path in the cache.
    remedy:         Callable[[dict], str]               # dataset_kwargs -> what to do if the file is missing, a clause.
    url:            str | None          = None          # Published here; may be downloaded without being asked for.
    make:           Callable[[dict, str, str], None] | None = None      # (dataset_kwargs, path, device): trains one.
    require:        Callable[[dict], None] | None = None                # Raises UserError if `make` cannot use data.
    option:         str | None          = None          # The user gives a file with this. None: --detector=NAME=FILE.
    dim:            int | None          = None          # Number of features D. None: any.
    extra_files:    tuple[str, ...]     = ()            # Texts in the TorchScript file, for Detector.extra.

    @property
    def flag(self) -> str:
        return self.option or f"--detector={self.name}"

    def call(self, use: str | dict) -> dict:
        """Keywords of the call, for the name of a use or as given."""
        return self.uses[use] if isinstance(use, str) else use

    @property
    def with_article(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name} detector"


def _published(name: str, file_name: str, uses: dict[str, dict]) -> Kind:
    """A kind that StyleGAN2-ADA-PyTorch published."""
    url = PUBLISHED + file_name

    def cached_path(dataset_kwargs: dict) -> str:
        return make_cache_dir_path("detectors", file_name)

    def remedy(dataset_kwargs: dict) -> str:
        return (f"fetch {url} into {cached_path({})} (`python calc_metrics.py prepare` does), or give "
                f"--detector={name}=FILE")

    return Kind(name=name, uses=uses, cached_path=cached_path, remedy=remedy, url=url)


def _trained(name: str, option: str, module: ModuleType, stem: str, remedy: Callable[[dict], str],
             dim: int | None = None) -> Kind:
    """A kind that `module` trains on the data set. Its path in the cache does not depend on --mirror."""
    def cached_path(dataset_kwargs: dict) -> str:
        if "path" not in dataset_kwargs:
            raise UserError(f"{option}: the {name} is learned from a data set; say which: --data=ZIP")
        return make_cache_dir_path("detectors", f"{stem}-{data_hash(dataset_kwargs)[:20]}.pt")

    return Kind(name=name, uses={"features": {}}, cached_path=cached_path, remedy=remedy, make=module.make_detector,
                require=module.require_data, option=option, dim=dim, extra_files=(METADATA,))


def _pose_remedy(dataset_kwargs: dict) -> str:
    path = dataset_kwargs.get("path", "ZIP")
    return (f"train one with `python calc_metrics.py prepare --metrics=pose_error --data={path}`, or with "
            f"`python -m metrics.pose_regressor --data={path} --dest=FILE` and give --pose-regressor=FILE")


def _embedding_remedy(dataset_kwargs: dict) -> str:
    path = dataset_kwargs.get("path")
    if path is None or shows_scenes_again(read_scene_ids(path)):
        path = path or "ZIP"
        return (f"train one with `python calc_metrics.py prepare --metrics=view_consistency --data={path}`, or with "
                f"`python -m metrics.scene_embedding --data={path} --dest=FILE` and give --embedding=FILE")
    return ("give --embedding=FILE, a TorchScript face recogniser (images [N, 3, H, W] in 0 .. 255 -> [N, D]) or what "
            "`python -m metrics.scene_embedding` makes from data of the same kind with two or more views of each scene "
            f"({path} shows no scene twice)")


KINDS = {kind.name: kind for kind in [
    _published("inception", "inception-2015-12-05.pt",
               {"features": dict(return_features=True), "probabilities": dict(no_output_bias=True)}),
    _published("vgg16", "vgg16.pt",
               {"features": dict(return_features=True), "lpips": dict(resize_images=False, return_lpips=True)}),
    _trained("pose_regressor", "--pose-regressor", pose_regressor, "pose-regressor", _pose_remedy, dim=3),
    _trained("embedding", "--embedding", scene_embedding, "scene-embedding", _embedding_remedy),
]}


def stem_of(address: str) -> str:
    """'https://host/folder/vgg16.pkl' -> 'vgg16'."""
    return os.path.splitext(address.split("/")[-1])[0]


def kind_of(name: str) -> Kind:
    """The kind with that name, or the one that an address means.

    NVIDIA's addresses of pickled detectors mean our TorchScript files of the same networks. Any other address or path
    is that of a TorchScript file, and the caller says how to call it.
    """
    if name in KINDS:
        return KINDS[name]
    if (urllib.parse.urlparse(name).hostname or "").endswith(".nvidia.com"):
        for kind in KINDS.values():
            if kind.url is not None and stem_of(name).startswith(kind.name):
                return kind

    def path_of(dataset_kwargs: dict) -> str:
        return open_url(name, return_filename=True) if is_url(name, allow_file_urls=True) else name

    return Kind(name=name, uses={"features": {}}, cached_path=path_of, option="detector_url",
                remedy=lambda _: "give the path or address of a TorchScript file")
