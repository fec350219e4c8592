"""StyleGAN2's files of the TensorFlow era: what is in their variables, and what is refused. Their numbers: test_legacy."""

import pickle

import numpy as np
import pytest
import torch
from helpers import DATA

import legacy
from dnnlib import UserError
from torch_utils import safe_pickle, tensorflow_format

Network = tensorflow_format.Network


def networks(name="tf_stylegan2"):
    with open(DATA / "pickles" / f"{name}.pkl", "rb") as stream:
        return safe_pickle.load(stream)


def change(network, **renamed):
    """Variables by name -> new array, or None to leave them out; in the network and its components."""
    for part in (network, *network.state["components"].values()):
        variables = [(key, renamed.get(key, value)) for key, value in part.state["variables"]]
        part.state["variables"] = [(key, value) for key, value in variables if value is not None]


def test_axes_flips_and_offsets():
    G, _, _ = networks()
    there, here = G.variables(), tensorflow_format.translate(networks())["G"]["state"]["tensors"]
    kernel = there["8x8/Conv0_up/weight"]                       # [height, width, in, out]
    assert torch.equal(here["synthesis.b8.conv0.weight"][3, 2], torch.from_numpy(kernel[::-1, ::-1, 2, 3].copy()))
    kernel = there["8x8/Conv1/weight"]
    assert torch.equal(here["synthesis.b8.conv1.weight"][3, 2], torch.from_numpy(kernel[:, :, 2, 3].copy()))
    assert torch.equal(here["synthesis.b4.conv1.affine.bias"], torch.from_numpy(there["4x4/Conv/mod_bias"] + 1))
    assert torch.equal(here["mapping.fc0.weight"], torch.from_numpy(there["Dense0/weight"].T.copy()))
    assert torch.equal(here["synthesis.b16.conv0.noise_const"], torch.from_numpy(there["noise3"][0, 0]))


@pytest.mark.parametrize("base, largest, size", [(128, 16, 32), (1 << 14, 8, 64), (64, 64, 16)])
def test_channels_are_read_off_the_shapes(base, largest, size):
    reader = tensorflow_format._Reader.__new__(tensorflow_format._Reader)
    reader.sizes, reader.resolution = [4 << i for i in range(8) if 4 << i <= size], size
    reader.network = networks()[0]
    found = reader.channels(lambda r: min(base // r, largest))
    for r in reader.sizes:
        assert min(found["channel_base"] // r, found["channel_max"]) == min(base // r, largest)
    with pytest.raises(UserError, match="do not follow"):
        reader.channels(lambda r: 7 if r == 4 else 3 if r == 8 else 5)


@pytest.mark.parametrize("variables, arguments, says", [
    ({"8x8/Conv1/bias": None}, {}, "no variable '8x8/Conv1/bias'"),
    ({"8x8/Conv1/bias": np.zeros([2, 2], np.float32)}, {}, "2 dimensions, expected 1"),
    ({"8x8/Conv1/bias": np.zeros([3], np.float32)}, {}, "stored with the shape"),
    ({"dlatent_avg": None}, {}, "dlatent_avg"),
    ({"4x4/Conv/weight": None}, {}, "not called as StyleGAN2's"),
    ({"32x32/Conv1/weight": np.zeros([3, 3, 8, 6], np.float32)}, {}, "do not follow"),
    ({}, dict(nonlinearity="relu"), "nonlinearity='relu'"),
    ({}, dict(resample_kernel=[1, 2, 1]), "resample_kernel"),
    ({}, dict(normalize_latents=False), "normalize_latents"),
])
def test_what_ours_cannot_express_is_refused(variables, arguments, says):
    G, D, Gs = networks()
    change(Gs, **variables)
    Gs.state["static_kwargs"].update(arguments)
    from torch_utils import persistence
    with pytest.raises(UserError, match=says) as error:
        persistence.from_tensorflow((G, D, Gs))
    assert "\n" not in error.value.format_message()


def write(path, *states):
    """A tuple of networks with these states."""
    data = b"\x80\x04("
    for state in states:
        data += b"cdnnlib.tflib.network\nNetwork\n)\x81" + pickle.dumps(state, protocol=2)[2:-1] + b"b"
    path.write_bytes(data + b"t.")
    return path


def state(**changes):
    return dict(dict(version=4, name="G", static_kwargs={}, components={}, variables=[], build_module_src="raise SystemExit", build_func_name="G"), **changes)


@pytest.mark.parametrize("states, says", [
    ([state()] * 3, "not called as StyleGAN2's"),
    ([state(variables=[("ToRGB_lod0/weight", 1.0)], name="Gs")] * 3, "'Gs' is no StyleGAN2"),           # progressive GAN, StyleGAN
    ([state()] * 2, r"\(G, D, Gs\)"),
    ([state(variables=None)] * 3, "lacks its variables"),
    ([state(components=[1])] * 3, "components that are none"),
    ([state(variables=[("4x4/Conv/weight", "text")])] * 3, "no arrays"),
    ([7] * 3, "stored as int"),
])
def test_other_networks_are_refused(states, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        legacy.load_network_pkl(write(tmp_path / "tf.pkl", *states))
    assert "tf.pkl" in error.value.format_message() and "\n" not in error.value.format_message()
