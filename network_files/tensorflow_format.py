"""Network files of the TensorFlow era: StyleGAN2 and StyleGAN2-ADA, as tuples (G, D, Gs) of
`dnnlib.tflib.network.Network`.

Such a network is stored as source code, arguments, and variables by name. The code is not read. What the network is
follows from the names and shapes of its variables; arguments only say what those leave open. Convolution kernels are
[height, width, in, out] there, matrices [in, out]. Kernels that upsample are stored flipped, and the bias of a
modulation without the 1 that is added to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from torch_utils import persistence
from torch_utils.module_state import plain

# Arguments that change the function but not the variables, with the values that our networks have.
_FIXED = dict(nonlinearity="lrelu", mapping_nonlinearity="lrelu", act="lrelu", normalize_latents=True, use_noise=True,
              use_instance_norm=False)
_MAX_TAPS = 16                           # of a resampling filter


class Network:
    """Stands for the name `dnnlib.tflib.network.Network` in a file: a network's state, without code."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise UserError(f"a TensorFlow network in it is stored as {type(state).__name__}")
        self.state = state

    @property
    def name(self) -> str:
        return str(self._get("name", str))[:80]

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the network and of its components."""
        found = dict(self._get("static_kwargs", dict))
        for component in self._components().values():
            found.update(component.arguments)
        return plain(found)

    def variables(self) -> dict[str, np.ndarray]:
        """All by name, those of the components too."""
        found = {}
        for component in self._components().values():
            found.update(component.variables())
        for item in self._get("variables", list):
            is_pair = isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str)
            if not is_pair or not isinstance(item[1], (np.ndarray, int, float)):
                raise UserError(f"the TensorFlow network {self.name!r} in it has variables that are not arrays")
            found[item[0]] = np.asarray(item[1])
        return found

    def _components(self) -> dict[str, Network]:
        components = self.__dict__.get("state", {}).get("components", {})
        fits = isinstance(components, dict) and all(type(item) is Network for item in components.values())
        if not fits or self in components.values():
            raise UserError("a TensorFlow network in it has components that are not networks")
        if any(item.__dict__.get("state", {}).get("components") for item in components.values()):
            raise UserError("a TensorFlow network in it has components of components; no StyleGAN2 does")
        return components

    def _get(self, key: str, kind: type) -> Any:
        value = self.__dict__.get("state", {}).get(key)
        if not isinstance(value, kind):
            raise UserError(f"a TensorFlow network in it lacks its {key}")
        return value


def is_network(obj: Any) -> bool:
    """Whether it is a TensorFlow network, or several of them, as a StyleGAN's file has."""
    return isinstance(obj, (tuple, Network))


def rebuild(networks: Any) -> dict[str, torch.nn.Module]:
    """(G, D, Gs) -> our networks by the names G, D and G_ema."""
    metas = translate(networks)
    return {name: persistence.rebuild(meta, may_lack=r".*\bresample_filter") for name, meta in metas.items()}


def translate(networks: Any) -> dict[str, dict[str, Any]]:
    """(G, D, Gs) -> metas of our own format by the names G, D and G_ema. Raises UserError unless they are StyleGAN2's.
    """
    if type(networks) is Network:
        raise UserError(f"a single TensorFlow network, {networks.name!r}; "
                        "expected a StyleGAN2 or StyleGAN2-ADA network file, which holds (G, D, Gs)")
    is_triple = isinstance(networks, (tuple, list)) and len(networks) == 3
    if not is_triple or not all(type(network) is Network for network in networks):
        raise UserError("TensorFlow networks in another form than (G, D, Gs); "
                        "expected a StyleGAN2 or StyleGAN2-ADA network file")
    G, D, Gs = networks
    return dict(G=_Generator(G).meta(), D=_Discriminator(D).meta(), G_ema=_Generator(Gs).meta())


# ---------------------------------------------------------------------------------------------------------------------
# From the arrays there to the tensors here.

def _matrix(w: np.ndarray) -> np.ndarray:
    return w.T


def _kernel(w: np.ndarray) -> np.ndarray:
    return w.transpose(3, 2, 0, 1)


def _flipped_kernel(w: np.ndarray) -> np.ndarray:
    return _kernel(w[::-1, ::-1])


def _plus_one(b: np.ndarray) -> np.ndarray:
    return b + 1


def _same(a: np.ndarray) -> np.ndarray:
    return a


class _Reader:
    """Takes one network's variables, one by one."""

    class_name = ""

    def __init__(self, network: Network):
        self.network = network
        self.arguments = network.arguments
        self.variables = network.variables()
        self.tensors: dict[str, Tensor] = {}
        self.taken: set[str] = set()
        for name, value in _FIXED.items():
            if name in self.arguments and self.arguments[name] != value:
                raise UserError(f"the TensorFlow network {network.name!r} was made with "
                                f"{name}={self.arguments[name]!r:.60}; only {value!r} can be read")
        if any("StyleMod" in name for name in self.variables):
            raise self.refusal("it is of the first StyleGAN")
        sizes = {int(match[1]) for name in self.variables if (match := re.match(r"(\d{1,5})x\1/", name))}
        self.resolution = max(sizes, default=0)
        self.take_last_stage_of_growing()
        self.sizes = [4 << i for i in range(20) if 4 << i <= self.resolution]
        if not self.sizes or set(self.sizes) != sizes or "4x4/Conv/weight" not in self.variables:
            raise self.refusal("its variables are not called as StyleGAN2's are")

    def take_last_stage_of_growing(self) -> None:
        """Networks that grew while training have a layer from, or to, the image at each resolution. The last
        one counts.
        """
        grown = {name: re.match(r"(ToRGB|FromRGB)_lod(\d+)/(.*)", name) for name in self.variables}
        if any(grown.values()) and float(self.variables.get("lod", np.zeros([]))) != 0:
            raise self.refusal("it has not grown to its full resolution")
        for name, match in grown.items():
            if match:
                variable = self.variables.pop(name)
                if match[2] == "0":
                    self.variables[f"{self.resolution}x{self.resolution}/{match[1]}/{match[3]}"] = variable

    def refusal(self, why: str) -> UserError:
        return UserError(f"the TensorFlow network {self.network.name!r} is no StyleGAN2 or StyleGAN2-ADA network "
                         f"that can be read: {why}")

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.variables:
            raise self.refusal(f"it has no variable {name!r}")
        if self.variables[name].ndim != rank:
            raise self.refusal(f"its variable {name!r} has {self.variables[name].ndim} dimensions, expected {rank}")
        return self.variables[name].shape

    def take(self, target: str, name: str, convert: Callable[[np.ndarray], np.ndarray], rank: int) -> None:
        self.shape(name, rank)
        self.tensors[target] = torch.from_numpy(np.array(convert(self.variables[name]), dtype=np.float32, order="C"))
        self.taken.add(name)

    def dense(self, target: str, name: str) -> None:
        self.take(f"{target}.weight", f"{name}/weight", _matrix, 2)
        self.take(f"{target}.bias", f"{name}/bias", _same, 1)

    def count(self, name: str) -> int:
        """How many of NAME0, NAME1, ... there are."""
        return next(i for i in range(len(self.variables) + 1) if f"{name}{i}/weight" not in self.variables)

    def channels(self, of_size: Callable[[int], int]) -> dict[str, int]:
        """channel_base and channel_max that give each resolution its number of channels."""
        found = {size: of_size(size) for size in self.sizes}
        largest = max(found.values())
        base = max(count * size for size, count in found.items())
        if any(count != min(base // size, largest) for size, count in found.items()):
            raise self.refusal(f"channels by resolution {found} do not follow min(base / resolution, max)")
        return dict(channel_base=base, channel_max=largest)

    def mapping(self, embed: str, dense: str, depth: int, w_dim: int, lr_multiplier: float) -> dict[str, Any]:
        """Arguments of the mapping network. embed, dense: its layers' names."""
        kwargs = dict(num_layers=depth, lr_multiplier=self.number("mapping_lrmul", lr_multiplier))
        inner = {self.shape(f"{dense}{i}/weight", 2)[1] for i in range(depth - 1)}
        if len(inner) > 1 or (depth and self.shape(f"{dense}{depth - 1}/weight", 2)[1] != w_dim):
            raise self.refusal("the layers of its mapping network differ in size")
        if inner and inner != {w_dim}:
            kwargs["layer_features"] = inner.pop()
        if f"{embed}/weight" in self.variables and self.shape(f"{embed}/weight", 2)[1] != w_dim:
            kwargs["embed_features"] = self.shape(f"{embed}/weight", 2)[1]
        return kwargs

    def resampling(self) -> dict[str, Any]:
        """The filter, if it differs from ours."""
        name = "resample_filter" if "resample_filter" in self.arguments else "resample_kernel"
        taps = self.arguments.get(name, [1, 3, 3, 1])
        taps = [1, 1] if taps is None else taps
        fits = (isinstance(taps, (list, tuple)) and 0 < len(taps) <= _MAX_TAPS
                and all(isinstance(tap, (int, float)) for tap in taps))
        if not fits or list(taps) != list(taps)[::-1] or sum(taps) == 0:
            raise self.refusal(f"it was made with {name}={taps!r:.60}; "
                               f"expected a symmetric list of at most {_MAX_TAPS} numbers")
        return {} if list(taps) == [1, 3, 3, 1] else dict(resample_filter=list(taps))

    def number(self, argument: str, default: float | None) -> float | None:
        """An argument; None stays None."""
        value = self.arguments.get(argument, default)
        if not (value is None or isinstance(value, (int, float))):
            raise self.refusal(f"its {argument} is not a number")
        return value

    def architecture_of(self, image_layer: str) -> str:
        """By which layers there are beside the convolutions; image_layer: "ToRGB" or "FromRGB"."""
        if f"{self.resolution}x{self.resolution}/Skip/weight" in self.variables:
            return "resnet"
        return "skip" if f"4x4/{image_layer}/weight" in self.variables else "orig"

    def precision(self) -> dict[str, Any]:
        return dict(num_fp16_res=self.number("num_fp16_res", 0), conv_clamp=self.number("conv_clamp", None))

    def meta(self) -> dict[str, Any]:
        kwargs = self.init_kwargs()
        self.read()
        unknown = [name for name, array in self.variables.items() if name not in self.taken and array.ndim > 0]
        if unknown:                      # single numbers are counters
            raise self.refusal(f"it has a variable {unknown[0][:80]!r} that none of ours has")
        return dict(type="class", class_name=self.class_name, init_args=(), init_kwargs=kwargs,
                    state=dict(tensors=self.tensors, training=False))

    def init_kwargs(self) -> dict[str, Any]:
        raise NotImplementedError

    def read(self) -> None:
        raise NotImplementedError


class _Generator(_Reader):
    class_name = "training.networks_stylegan2.Generator"

    def init_kwargs(self) -> dict[str, Any]:
        if "LabelConcat/weight" in self.variables:
            raise self.refusal("it joins labels and latents in the way of the first StyleGAN, "
                               "which StyleGAN2-ADA has given up")
        self.depth = self.count("Dense")
        if self.depth == 0:
            raise self.refusal("it has no mapping network")
        top = f"{self.resolution}x{self.resolution}"
        label_size, embed = self.shape("LabelEmbed/weight", 2) if "LabelEmbed/weight" in self.variables else (0, 0)
        w_dim = self.shape("4x4/Conv/mod_weight", 2)[0]
        beta = self.number("w_avg_beta" if "w_avg_beta" in self.arguments else "dlatent_avg_beta", 0.995)
        mapping = self.mapping("LabelEmbed", "Dense", self.depth, w_dim, 0.01)
        mapping["w_avg_beta"] = 1.0 if beta is None else beta           # 1: the average stays as it is
        self.architecture = self.architecture_of("ToRGB")
        return dict(z_dim=self.shape("Dense0/weight", 2)[0] - embed, c_dim=label_size, w_dim=w_dim,
                    img_resolution=self.resolution, img_channels=self.shape(f"{top}/ToRGB/weight", 4)[3],
                    mapping_kwargs=mapping, architecture=self.architecture, **self.channels(self.channels_of),
                    **self.precision(), **self.resampling())

    def channels_of(self, size: int) -> int:
        return self.shape("4x4/Conv/weight" if size == 4 else f"{size}x{size}/Conv1/weight", 4)[3]

    def read(self) -> None:
        for i in range(self.depth):
            self.dense(f"mapping.fc{i}", f"Dense{i}")
        if "LabelEmbed/weight" in self.variables:
            self.dense("mapping.embed", "LabelEmbed")
        self.take("mapping.w_avg", "dlatent_avg", _same, 1)
        self.take("synthesis.b4.const", "4x4/Const/const", lambda a: a[0], 4)
        noises = iter(range(len(self.variables)))
        for size in self.sizes:
            block, there = f"synthesis.b{size}", f"{size}x{size}"
            layers = [("conv0", "Conv0_up", _flipped_kernel), ("conv1", "Conv1", _kernel)]
            if size == 4:
                layers = [("conv1", "Conv", _kernel)]
            for ours, theirs, convert in layers:
                self.modulated(f"{block}.{ours}", f"{there}/{theirs}", convert)
                self.take(f"{block}.{ours}.noise_strength", f"{there}/{theirs}/noise_strength", _same, 0)
                self.take(f"{block}.{ours}.noise_const", f"noise{next(noises)}", lambda a: a[0, 0], 4)
            if self.architecture == "skip" or size == self.resolution:
                self.modulated(f"{block}.torgb", f"{there}/ToRGB", _kernel)
            if self.architecture == "resnet" and size > 4:
                self.take(f"{block}.skip.weight", f"{there}/Skip/weight", _flipped_kernel, 4)

    def modulated(self, target: str, name: str, convert: Callable[[np.ndarray], np.ndarray]) -> None:
        self.take(f"{target}.weight", f"{name}/weight", convert, 4)
        self.take(f"{target}.bias", f"{name}/bias", _same, 1)
        self.take(f"{target}.affine.weight", f"{name}/mod_weight", _matrix, 2)
        self.take(f"{target}.affine.bias", f"{name}/mod_bias", _plus_one, 1)


class _Discriminator(_Reader):
    class_name = "training.networks.discriminator.Discriminator"

    def init_kwargs(self) -> dict[str, Any]:
        top = f"{self.resolution}x{self.resolution}"
        label_size = self.shape("LabelEmbed/weight", 2)[0] if "LabelEmbed/weight" in self.variables else 0
        outputs = self.shape("Output/weight", 2)[1]
        if outputs != 1 and not label_size:
            raise self.refusal("it picks one of several outputs by label, in the way of the first StyleGAN")
        self.depth = self.count("Mapping")
        self.architecture = self.architecture_of("FromRGB")
        features = self.shape("4x4/Conv/weight", 4)
        epilogue = dict(mbstd_group_size=self.number("mbstd_group_size", 4),
                        mbstd_num_channels=features[2] - features[3])
        kwargs = dict(c_dim=label_size, img_resolution=self.resolution,
                      img_channels=self.shape(f"{top}/FromRGB/weight", 4)[2], architecture=self.architecture,
                      **self.channels(self.channels_of), **self.precision(), epilogue_kwargs=epilogue,
                      block_kwargs=self.resampling())
        if label_size:
            mapping = self.mapping("LabelEmbed", "Mapping", self.depth, outputs, 0.1)
            kwargs.update(cmap_dim=outputs, mapping_kwargs=mapping)
        return kwargs

    def channels_of(self, size: int) -> int:
        return self.shape("4x4/Conv/weight", 4)[3] if size == 4 else self.shape(f"{size}x{size}/Conv0/weight", 4)[2]

    def read(self) -> None:
        for size in self.sizes:
            block, there = f"b{size}", f"{size}x{size}"
            if size == self.resolution or self.architecture == "skip":
                self.convolution(f"{block}.fromrgb", f"{there}/FromRGB")
            if size == 4:
                continue
            self.convolution(f"{block}.conv0", f"{there}/Conv0")
            self.convolution(f"{block}.conv1", f"{there}/Conv1_down")
            if self.architecture == "resnet":
                self.take(f"{block}.skip.weight", f"{there}/Skip/weight", _kernel, 4)
        self.convolution("b4.conv", "4x4/Conv")
        self.dense("b4.fc", "4x4/Dense0")
        self.dense("b4.out", "Output")
        if "LabelEmbed/weight" in self.variables:
            self.dense("mapping.embed", "LabelEmbed")
            for i in range(self.depth):
                self.dense(f"mapping.fc{i}", f"Mapping{i}")

    def convolution(self, target: str, name: str) -> None:
        self.take(f"{target}.weight", f"{name}/weight", _kernel, 4)
        self.take(f"{target}.bias", f"{name}/bias", _same, 1)
