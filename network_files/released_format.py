"""Network files of StyleGAN2-ADA-PyTorch, StyleGAN3 and the released ray-conditioning code, read as data.

Such a file stores every module of a network, nested, as class name, attributes and the source code of its module. Here
the inner modules stay `Part`s. From the outermost one `translate` makes a description in our own format: which of our
classes it is, with which init arguments, and the tensors by name. Generators of all families are called 'Generator'
there, so the family is decided by the parts. The source code is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dnnlib.util import UserError
from torch_utils import persistence
from torch_utils.module_state import plain

RAY_CHANNELS = 6                        # of the ray map that released ray conditioning appends to a layer's input

_NETWORKS = ("Generator", "Discriminator", "AugmentPipe")
_INNER = ("SynthesisNetwork", "SynthesisBlock", "SynthesisLayer", "SynthesisInput", "ToRGBLayer", "MappingNetwork",
          "FullyConnectedLayer", "Conv2dLayer", "DiscriminatorBlock", "DiscriminatorEpilogue", "MinibatchStdLayer")
_POSITIONAL = {
    "Generator":     ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs",
                      "synthesis_kwargs"),
    "Discriminator": ("c_dim", "img_resolution", "img_channels", "architecture"),
    "AugmentPipe":   (),
}


@dataclass
class Part:
    """A stored module: class name and attributes, among them torch's `_parameters`, `_buffers` and `_modules`."""

    class_name: str
    state: dict[str, Any] = field(repr=False)

    @staticmethod
    def from_meta(meta: dict) -> Part:
        """Raises UserError unless it is a module of the families above."""
        name, state = meta.get("class_name"), meta.get("state")
        if name not in _NETWORKS + _INNER:
            raise UserError(f"the class {name!r} in the file is not one that can be read; "
                            "expected StyleGAN2, StyleGAN3 or ray-conditioning networks")
        keys = ("_parameters", "_buffers", "_modules")
        if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in keys):
            raise UserError(f"the stored {name} is no torch module")
        return Part(name, state)

    @property
    def is_inner(self) -> bool:
        return self.class_name in _INNER

    @property
    def children(self) -> dict[str, Part]:
        return {name: child for name, child in self.state["_modules"].items() if isinstance(child, Part)}

    def child(self, *path: str) -> Part:
        part = self
        for name in path:
            if name not in part.children:
                raise UserError(f"the stored {self.class_name} has no part {'.'.join(path)!r}; its family is not known")
            part = part.children[name]
        return part

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of its own parameters or buffers."""
        tensor = self.state["_parameters"].get(name, self.state["_buffers"].get(name))
        if not isinstance(tensor, Tensor):
            raise UserError(f"the stored {self.class_name} has no tensor {name!r}; its family is not known")
        return tuple(tensor.shape)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All parameters and buffers by their full names."""
        own = {**self.state["_parameters"], **self.state["_buffers"]}
        found = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
        for name, child in self.children.items():
            found.update(child.tensors(f"{prefix}{name}."))
        return found

    def init_kwargs(self) -> dict[str, Any]:
        """All init arguments by name."""
        args, kwargs = self.state.get("_init_args", ()), self.state.get("_init_kwargs", {})
        names = _POSITIONAL[self.class_name]
        if not isinstance(args, tuple) or not isinstance(kwargs, dict) or len(args) > len(names):
            raise UserError(f"the init arguments of the stored {self.class_name} are missing or not understood")
        return plain({**dict(zip(names, args)), **kwargs})


def rebuild(meta: dict) -> Any:
    """The network that an entry of a file describes. An inner module stays a Part: the network around it takes its
    tensors. `torch_utils.persistence` calls this for entries that have source code.
    """
    part = Part.from_meta(meta)
    if part.is_inner:
        return part
    if part.class_name == "AugmentPipe":
        return rebuild_augment_pipe(part)
    return persistence.rebuild(translate(part))


def rebuild_augment_pipe(part: Part) -> Any:
    """Takes only the probability `p` from the file, which is all that a run changes; the filters are constants. Returns
    the Part where this version has no AugmentPipe.
    """
    tensors = {name: tensor for name, tensor in part.tensors().items() if name == "p"}
    meta = _meta("training.augment.AugmentPipe", part.init_kwargs(), tensors, part)
    try:
        persistence.resolve_class(meta["class_name"])
    except UserError:
        return part
    return persistence.rebuild(meta, may_lack=".*")


def translate(part: Part) -> dict[str, Any]:
    """Generator or Discriminator -> meta of our own format. Raises UserError if its family is not known."""
    assert part.class_name in ("Generator", "Discriminator"), part.class_name
    if part.class_name == "Generator":
        module, kwargs = _describe_generator(part)
    else:
        module, kwargs = "training.networks.discriminator", _describe_discriminator(part)
    return _meta(f"{module}.{part.class_name}", kwargs, part.tensors(), part)


def _meta(class_name: str, kwargs: dict, tensors: dict[str, Tensor], part: Part) -> dict[str, Any]:
    state = dict(
        tensors=tensors,
        training=bool(part.state.get("training", False)),
        trainable=[name for name, tensor in tensors.items() if getattr(tensor, "requires_grad", False)],
    )
    return dict(type="class", class_name=class_name, init_args=(), init_kwargs=kwargs, state=state)


def _describe_generator(part: Part) -> tuple[str, dict[str, Any]]:
    """(module of our class, init arguments)."""
    kwargs = part.init_kwargs()
    kwargs.update(kwargs.pop("synthesis_kwargs", None) or {})                # nested by StyleGAN2-ADA
    synthesis, mapping = part.child("synthesis"), part.child("mapping")
    if "b4" in synthesis.children:
        block = synthesis.child("b4")
        added = block.child("conv1").shape("weight")[1:2] + block.shape("const")[:1]
        families = {0: "training.networks_stylegan2", RAY_CHANNELS: "training.networks_raycond2"}
        _add_precision(kwargs, synthesis, block.child("conv1"))
    else:
        layers = [child for name, child in synthesis.children.items() if name != "input"]
        if not layers:
            raise UserError("the synthesis network in the file has no layers; its family is not known")
        added = layers[0].shape("weight")[1:2] + synthesis.child("input").shape("weight")[:1]
        families = {0: "training.networks_stylegan3", RAY_CHANNELS: "training.networks_raycond3"}
    extra = added[0] - added[1] if len(added) == 2 else None
    if extra not in families:
        raise UserError(f"the first layer of the synthesis network in the file takes {extra} channels more than its "
                        f"input has; expected 0, or {RAY_CHANNELS} for rays")

    kwargs["mapping_kwargs"] = dict(kwargs.get("mapping_kwargs") or {})
    _add_depth(kwargs["mapping_kwargs"], mapping)
    if "w_avg_beta" in mapping.state:
        kwargs["mapping_kwargs"].setdefault("w_avg_beta", plain(mapping.state["w_avg_beta"]))
    return families[extra], kwargs


def _describe_discriminator(part: Part) -> dict[str, Any]:
    kwargs = part.init_kwargs()
    blocks = [child for child in part.children.values() if child.class_name == "DiscriminatorBlock"]
    if blocks:
        _add_precision(kwargs, part, blocks[0].child("conv0"))
    if "mapping" in part.children:
        kwargs["mapping_kwargs"] = dict(kwargs.get("mapping_kwargs") or {})
        _add_depth(kwargs["mapping_kwargs"], part.child("mapping"))
    return kwargs


# The constructors' defaults have changed over the years. What the init arguments leave open is taken from the parts.

def _add_precision(kwargs: dict[str, Any], network: Part, layer: Part) -> None:
    kwargs.setdefault("num_fp16_res", sum(bool(child.state.get("use_fp16")) for child in network.children.values()))
    if "conv_clamp" in layer.state:
        kwargs.setdefault("conv_clamp", plain(layer.state["conv_clamp"]))


def _add_depth(mapping_kwargs: dict[str, Any], mapping: Part) -> None:
    mapping_kwargs.setdefault("num_layers", sum(name.startswith("fc") for name in mapping.children))
