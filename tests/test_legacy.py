"""Network files of ours and of the released format: their numbers, and that nothing in them runs."""

import collections
import functools
import io
import os
import pickle
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import DATA, assert_close_rel, load_golden

import legacy
import network_files
from dnnlib import EasyDict, UserError
from network_files import known_names, released_format
from torch_utils import persistence
from training import networks_raycond2, networks_stylegan2

RELEASED = {"raycond2": "training.networks_raycond2", "stylegan2": "training.networks_stylegan2",
            "ada_stylegan2_cond": "training.networks_stylegan2",
            "stylegan3r": "training.networks_stylegan3", "stylegan3t_camera_label": "training.networks_stylegan3",
            "raycond3r": "training.networks_raycond3", "raycond3t": "training.networks_raycond3"}
SOURCE = b"raise RuntimeError('the embedded source of a network pickle was executed')\n"


def golden_pickle(name):
    return DATA / "pickles" / f"{name}.pkl"


def assert_golden_numbers(networks, name):
    golden = load_golden(f"pickles/{name}.npz")
    z, c, x, cx = (torch.as_tensor(golden[key]) for key in ("z", "c", "x", "cx"))
    with torch.no_grad():
        for key in ("G_ema", "G"):
            assert_close_rel(networks[key](z, c, noise_mode="const"), golden[f"{key}_img"], 2e-4, key)
        assert_close_rel(networks["D"](x, cx), golden["D_logits"], 2e-4, "D")


def tiny(cls=networks_stylegan2.Generator, **kwargs):
    torch.manual_seed(2)
    kwargs = dict(dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3, channel_base=128, channel_max=8,
                       num_fp16_res=0, conv_clamp=None,
                       mapping_kwargs=dict(num_layers=2)), **kwargs)
    return cls(**kwargs).eval().requires_grad_(False)


def one_line(error):
    text = error.value.format_message()
    assert "\n" not in text
    return text


TENSORFLOW = {"tf_stylegan2": "skip", "tf_stylegan2_cond": "resnet"}

# ---------------------------------------------------------------------------------------------------------------------
# Numbers.

@pytest.mark.parametrize("name, architecture", TENSORFLOW.items())
def test_tensorflow_files_give_their_numbers(name, architecture):
    networks = legacy.load_network_pkl(golden_pickle(name))
    assert_golden_numbers(networks, name)
    assert set(networks) == set(legacy.KEYS) and networks["training_set_kwargs"] is None
    assert networks["G_ema"].init_kwargs.architecture == architecture
    assert not networks["G_ema"].training and not any(p.requires_grad for p in networks["G_ema"].parameters())


@pytest.mark.parametrize("name", [*RELEASED, *TENSORFLOW])
def test_there_and_back(name, tmp_path):
    """Through .safetensors and back the images stay the same to the last bit."""
    pytest.importorskip("safetensors")
    shared, back = tmp_path / "shared.safetensors", tmp_path / "back.pkl"
    for arguments in ([f"--source={golden_pickle(name)}", f"--dest={shared}", "--what=all", "--licence=CC0"],
                      [f"--source={shared}", f"--dest={back}"]):
        result = CliRunner().invoke(legacy.main, arguments)
        assert result.exit_code == 0, result.output
    before, after = legacy.load_network_pkl(golden_pickle(name)), legacy.load_network_pkl(back)
    assert_golden_numbers(after, name)
    assert after["licence"] == "CC0"
    golden = load_golden(f"pickles/{name}.npz")
    z, c = torch.as_tensor(golden["z"]), torch.as_tensor(golden["c"])
    assert torch.equal(before["G_ema"](z, c, noise_mode="const"), after["G_ema"](z, c, noise_mode="const"))
    for key in ("G", "D", "G_ema"):
        assert before[key].init_kwargs == after[key].init_kwargs
        for (name, a), (other, b) in zip(before[key].state_dict().items(), after[key].state_dict().items()):
            assert name == other and torch.equal(a, b), name


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_give_their_numbers(name):
    networks = legacy.load_network_pkl(golden_pickle(name))
    assert_golden_numbers(networks, name)
    assert set(networks) == set(legacy.KEYS) and networks["camera_stats"] is None
    assert networks["training_set_kwargs"]["class_name"] == "training.dataset.ImageFolderDataset"
    assert type(networks["G_ema"]).__module__ == RELEASED[name]
    assert getattr(networks["G"], "rays", None) == ("published" if name.startswith("raycond") else None)
    assert not networks["G_ema"].training and not any(p.requires_grad for p in networks["G_ema"].parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_through_plain_pickle(name):
    with open(golden_pickle(name), "rb") as stream:
        networks = pickle.load(stream)
    assert_golden_numbers(networks, name)


@pytest.mark.parametrize("name", RELEASED)
def test_converted_files_give_the_same_numbers_and_hold_no_source(name, tmp_path):
    dest = tmp_path / "ours.pkl"
    result = CliRunner().invoke(legacy.main, [f"--source={golden_pickle(name)}", f"--dest={dest}"])
    assert result.exit_code == 0, result.output
    assert "training.networks_" in result.output and os.listdir(tmp_path) == ["ours.pkl"]
    assert b"module_src" not in dest.read_bytes() and b"raise " not in dest.read_bytes()
    assert_golden_numbers(legacy.load_network_pkl(dest), name)


@pytest.mark.parametrize("load", [legacy.load_network_pkl, lambda path: pickle.loads(path.read_bytes())])
def test_embedded_source_does_not_run(load, tmp_path, monkeypatch):
    """The golden files' source raises; here it would also leave a trace even if someone caught that."""
    monkeypatch.delattr(sys, "ran_embedded_source", raising=False)
    trap = b"import sys; sys.ran_embedded_source = True"
    trap += b" " * (len(SOURCE) - len(trap) - 1) + b"\n"
    data = golden_pickle("raycond2").read_bytes()
    assert data.count(SOURCE) > 0
    path = tmp_path / "trap.pkl"
    path.write_bytes(data.replace(SOURCE, trap))
    exec(trap, {})                                             # the trap works
    assert sys.ran_embedded_source
    del sys.ran_embedded_source
    assert isinstance(load(path)["G_ema"], networks_raycond2.Generator)
    assert not hasattr(sys, "ran_embedded_source")


def test_own_snapshot(tmp_path):
    G = tiny()
    stats = dict(radius=2.7, pivot=[0.0, 0.0, 0.2])
    path = tmp_path / "net.pkl"
    persistence.save(dict(G_ema=G, training_set_kwargs=EasyDict(path="x.zip"), camera_stats=stats, note="kept"), path)
    z = torch.randn(2, 8)
    expected = G(z, None, noise_mode="const")
    with open(path, "rb") as stream:
        for source in (path, str(path), path.as_uri(), stream, io.BytesIO(path.read_bytes())):
            data = legacy.load_network_pkl(source)
            assert torch.equal(data["G_ema"](z, None, noise_mode="const"), expected)
    assert data["G"] is data["D"] is data["augment_pipe"] is None
    assert data["camera_stats"] == stats and data["note"] == "kept"
    assert data["training_set_kwargs"] == dict(path="x.zip")
    assert torch.equal(network_files.read(path)["G_ema"](z, None, noise_mode="const"), expected)
    loaded = legacy.load_generator(path)
    assert torch.equal(loaded(z, None, noise_mode="const"), expected) and loaded.camera_stats == stats


def test_old_name_of_our_tensors_is_known():
    data = persistence.StoredTensor(torch.arange(3.0)).__reduce_ex__(4)[1]
    old = pickle.dumps(data, 2)[2:-1]
    stream = io.BytesIO(b"\x80\x02ctorch_utils.tensor_bytes\ndecode\n" + old + b"R.")
    assert torch.equal(known_names.load(stream), torch.arange(3.0))


def test_load_generator_takes_g_where_there_is_no_average(tmp_path):
    persistence.save(dict(G=tiny().train().requires_grad_(True), G_ema=None), tmp_path / "net.pkl")
    G = legacy.load_generator(tmp_path / "net.pkl")
    assert not G.training and not any(p.requires_grad for p in G.parameters())


def test_force_fp16(tmp_path):
    G = tiny(conv_clamp=None)
    persistence.save(dict(G_ema=G), tmp_path / "net.pkl")
    half = legacy.load_network_pkl(tmp_path / "net.pkl", force_fp16=True)["G_ema"]
    assert not G.synthesis.b16.use_fp16 and half.synthesis.b16.use_fp16
    assert (half.synthesis.b16.conv1.conv_clamp, half.init_kwargs.num_fp16_res) == (256, 4)
    z = torch.randn(2, 8)
    assert torch.equal(half(z, None, noise_mode="const"),
                       G(z, None, noise_mode="const"))      # on the CPU both compute in float32


def test_precision_left_open_is_read_off_the_layers():
    """StyleGAN2-ADA's constructors have other defaults than ours, so a file that relies on them must not get ours."""
    with open(golden_pickle("stylegan2"), "rb") as stream:
        part = RecordingUnpickler(stream).load()["G"]
    for key in ("num_fp16_res", "conv_clamp", "mapping_kwargs"):
        del part.state["_init_kwargs"][key]
    synthesis = part.child("synthesis")
    for block in synthesis.children.values():
        block.state["use_fp16"] = block.state["resolution"] == 32
        block.child("conv1").state["conv_clamp"] = 31
    part.child("mapping").state["w_avg_beta"] = 0.5
    kwargs = released_format.translate(part)["init_kwargs"]
    assert (kwargs["num_fp16_res"], kwargs["conv_clamp"]) == (1, 31)
    assert kwargs["mapping_kwargs"] == dict(num_layers=3, w_avg_beta=0.5)
    nested = {"synthesis_kwargs": {"channel_base": part.state["_init_kwargs"].pop("channel_base")}}
    part.state["_init_kwargs"].update(nested)
    assert released_format.translate(part)["init_kwargs"]["channel_base"] == 256


class RecordingUnpickler(pickle.Unpickler):
    """A released file with its networks left as stored."""

    def find_class(self, module, name):
        if name == "_reconstruct_persistent_obj":
            return released_format.Part.from_meta
        return super().find_class(module, name)


# ---------------------------------------------------------------------------------------------------------------------
# Hostile files.

class Call:
    """Pickles as a call of that function."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def saved_storage(first_pickle=None):
    """What torch puts into the file for the storage of a tensor; optionally with another first pickle in it."""
    storage = torch.arange(4.0).__reduce_ex__(2)[1][0]
    data, = storage.__reduce__()[1]
    return data if first_pickle is None else first_pickle + data


def rebuilt_tensor(data, offset, shape, stride):
    storage = Call(torch.storage._load_from_bytes, data)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, collections.OrderedDict())


def unsound_tensor(offset, shape, stride):
    return dict(t=rebuilt_tensor(saved_storage(), offset, shape, stride))


def evil(path):
    return Call(os.system, f"touch {path}")


HOSTILE = {
    "os.system":            (lambda p: dict(G=evil(p)), r"posix\.system"),
    "exec":                 (lambda p: dict(G=Call(exec, f"open({str(p)!r}, 'w')")), r"builtins\.exec"),
    "eval":                 (lambda p: dict(G=Call(eval, f"open({str(p)!r}, 'w')")), r"builtins\.eval"),
    "open":                 (lambda p: dict(G=Call(open, str(p), "w")), r"io\.open"),
    "getattr":              (lambda p: dict(G=Call(getattr, 1, "real")), r"builtins\.getattr"),
    "partial":              (lambda p: dict(G=functools.partial(os.system, "true")), r"functools\.partial"),
    "torch.load":           (lambda p: dict(G=Call(torch.load, str(p))), r"torch.*load"),
    "import":               (lambda p: dict(G=Call(__import__, "antigravity")), r"builtins\.__import__"),
    "nested pickle":        (lambda p: dict(G=Call(pickle.loads, pickle.dumps(evil(p)))), r"_pickle\.loads"),
    "in storage bytes":     (lambda p: dict(G=rebuilt_tensor(saved_storage(pickle.dumps(evil(p))), 0, (4,), (1,))),
                             r"posix\.system"),
    "zip in storage bytes": (lambda p: dict(G=Call(torch.storage._load_from_bytes, zipped(evil(p)))), "damaged"),
    "object array":         (lambda p: dict(G=np.array([evil(p)], dtype=object)), r"posix\.system"),
    "object dtype":         (lambda p: dict(G=np.array([None], dtype=object)), "numpy array in it is malformed"),
    "other class of ours":  (lambda p: dict(G=Call(networks_stylegan2.Generator)), r"networks_stylegan2\.Generator"),
    "class in a meta":      (lambda p: dict(G=Call(persistence._reconstruct_persistent_obj, dict(
                                type="class", class_name="os.system", init_args=(f"touch {p}",), init_kwargs={},
                                                                                                 state={}))),
                             r"os\.system"),
    "tensorflow":           (lambda p: b"\x80\x04cdnnlib.tflib.network\nNetwork\n.", "holds a Allowed, not a dict"),
    "dotted name":          (lambda p: b"\x80\x04\x8c\x18torch_utils.tensor_bytes\x94\x8c\x0bdecode.fget\x94\x93.",
                             r"decode\.fget"),
}


def zipped(obj):
    stream = io.BytesIO()
    torch.save(obj, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(kind, tmp_path):
    make, message = HOSTILE[kind]
    trace = tmp_path / "ran"
    data = make(trace)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, protocol=4))
    with pytest.raises(UserError, match=message) as error:
        legacy.load_network_pkl(path)
    assert one_line(error).startswith(str(path))
    assert not trace.exists()


@pytest.mark.parametrize("name",
                         ["torch_utils.persistence _reconstruct_persistent_obj", "dnnlib.util EasyDict", "numpy dtype"])
@pytest.mark.parametrize("state", [{"__defaults__": (1,), "marker": 1}, (None, {"marker": 1})])
def test_files_cannot_change_what_they_name(name, state):
    """BUILD on a global would set attributes of functions and classes of this process."""
    module, attribute = name.split()
    data = f"c{module}\n{attribute}\n".encode() + pickle.dumps(state, protocol=2)[2:-1] + b"b."
    with pytest.raises(Exception, match="tries to change|missing 1 required"):
        known_names.load(io.BytesIO(b"\x80\x02" + data))
    for obj in (persistence._reconstruct_persistent_obj, EasyDict, known_names._NewEasyDict):
        assert not hasattr(obj, "marker")


def test_finished_networks_cannot_be_tampered_with():
    meta = tiny().__reduce_ex__(5)[1][0]
    data = pickle.dumps(dict(G=Call(persistence._reconstruct_persistent_obj, meta, state={"forward": 1})), protocol=5)
    for load in (known_names.load, pickle.load):
        with pytest.raises(UserError, match="tries to change attributes"):
            load(io.BytesIO(data))


@pytest.mark.parametrize("offset, shape, stride", [
    (1, (4,), (1,)), (0, (2, 3), (3, 1)), (0, (1 << 40,), (0,)), (0, (-1,), (1,)), (-1, (2,), (1,)), (0, (2,), (1, 1)),
])
def test_tensors_beyond_their_storage_are_refused(offset, shape, stride):
    assert torch.equal(known_names.load(io.BytesIO(pickle.dumps(unsound_tensor(1, (3,), (1,)))))["t"],
                       torch.arange(1.0, 4))
    with pytest.raises(UserError, match="a tensor in it is malformed"):
        known_names.load(io.BytesIO(pickle.dumps(unsound_tensor(offset, shape, stride))))


def test_storage_that_promises_more_than_it_has():
    data = saved_storage()
    at = data.rindex(struct.pack("<q", 4))
    for numel in (5, 1 << 50, -1):
        broken = data[:at] + struct.pack("<q", numel) + data[at + 8:]
        with pytest.raises(ValueError, match="does not fit together"):
            known_names.load(io.BytesIO(pickle.dumps(rebuilt_tensor(broken, 0, (4,), (1,)))))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_harmless_values(protocol):
    """Numbers, arrays, containers and torch tensors of all kinds come back, also under numpy 1's names."""
    value = dict(
        x=np.float64(0.25), i=np.int32(-3), s={1, 2}, b=b"\xff\x00", e=EasyDict(k=EasyDict(v=1)),
                 o=collections.OrderedDict(q=1),
        a=np.arange(6, dtype=np.float32).reshape(2, 3), f=np.asfortranarray(np.eye(3)),
        t=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), h=torch.randn(3).bfloat16(),
                 p=torch.nn.Parameter(torch.ones(2)),
        n=torch.tensor(3), z=torch.zeros(0, 2))
    new = old = pickle.dumps(value, protocol)
    if protocol < 4:                                           # later protocols count the letters
        old = new.replace(b"numpy._core.", b"numpy.core.")
    for data in (new, old):
        loaded = known_names.load(io.BytesIO(data))
        assert (loaded["x"], loaded["i"], loaded["s"], loaded["b"], loaded["o"]) == (0.25, -3, {1, 2}, b"\xff\x00",
                                                                                     dict(q=1))
        assert loaded["e"].k.v == 1 and type(loaded["e"]) is EasyDict
        for key in "af":
            np.testing.assert_array_equal(loaded[key], value[key])
            assert loaded[key].dtype == value[key].dtype
        for key in "thnzp":
            assert torch.equal(loaded[key], value[key]) and loaded[key].dtype == value[key].dtype
            assert loaded[key].stride() == value[key].stride()
        assert isinstance(loaded["p"], torch.nn.Parameter) and loaded["p"].requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# Files that are none.

@pytest.mark.parametrize("content, message", [
    (b"", "the file is empty"),
    (b"G = load('x')\n", "not a network file"),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
    (b"PK\x03\x04" + bytes(50), "a zip archive"),
    (b"\n<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (b"\x80\x04", "cut short or damaged"),
    (b"\x80\x09abc", "not a network file"),
    (pickle.dumps([1, 2]), "a list, not a dict"),
    (pickle.dumps({1: 2}), "not a dict of networks"),
    (pickle.dumps(dict(a=1)), "holds no network"),
    (pickle.dumps(dict(G_ema=None, G=None)), "holds no network"),
    (pickle.dumps(dict(G="net")), "its G is a str, not a network"),
    (pickle.dumps(dict(G=None, camera_stats="x")), "its camera_stats is a str, not a dict"),
])
def test_other_files(content, message, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        legacy.load_network_pkl(path)
    assert one_line(error).startswith(f"{path}: ")


def test_missing_files(tmp_path):
    for path in (tmp_path / "nix.pkl", tmp_path):
        with pytest.raises(UserError, match=str(path)) as error:
            legacy.load_network_pkl(path)
        one_line(error)


def test_discriminator_alone_is_no_generator(tmp_path):
    D = networks_stylegan2.Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=8)
    persistence.save(dict(D=D), tmp_path / "d.pkl")
    assert legacy.load_network_pkl(tmp_path / "d.pkl")["G_ema"] is None
    with pytest.raises(UserError, match="no generator"):
        legacy.load_generator(tmp_path / "d.pkl")


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["released", "ours"])
def test_truncated_files(kind, share, tmp_path):
    if kind == "ours":
        persistence.save(dict(G_ema=tiny()), tmp_path / "whole.pkl")
    data = (golden_pickle("stylegan2") if kind == "released" else tmp_path / "whole.pkl").read_bytes()
    path = tmp_path / "cut.pkl"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cut short or damaged") as error:
        legacy.load_network_pkl(path)
    assert "again" in one_line(error)


def renamed(old, new):
    assert len(old) == len(new)
    return golden_pickle("stylegan2").read_bytes().replace(old, new)


@pytest.mark.parametrize("data, message", [
    (renamed(b"SynthesisNetwork", b"TriPlaneRenderer"), "TriPlaneRenderer"),
    (renamed(b"\x05const", b"\x05konst"), "no tensor 'const'"),
    (renamed(b"\x05conv1", b"\x05konv1"), "no part 'conv1'"),
    (renamed(b"\x0cchannel_base", b"\x0cchannel_bass"), "channel_bass"),
    (renamed(b"\x0bnoise_const", b"\x0bnoise_konst"), "noise_const"),
])
def test_unknown_families_are_named(data, message, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        legacy.load_network_pkl(path)
    one_line(error)


def stored_as_released(class_name, **modules):
    state = dict(_parameters={}, _buffers={}, _modules=collections.OrderedDict(modules), _init_args=(),
                 _init_kwargs=EasyDict(), training=False)
    return Call(persistence._reconstruct_persistent_obj,
                EasyDict(type="class", version=6, module_src=SOURCE.decode(), class_name=class_name, state=state))


@pytest.mark.parametrize("modules", [
    lambda: dict(),
    lambda: dict(decoder=stored_as_released("OSGDecoder")),
    lambda: dict(backbone=stored_as_released("Generator"),
                 superresolution=stored_as_released("SuperresolutionHybrid8XDC")),
    lambda: dict(decoder=torch.nn.Softplus()),
])
def test_eg3d_is_refused_by_its_name(modules, tmp_path):
    path = tmp_path / "ffhq512-128.pkl"
    path.write_bytes(pickle.dumps(dict(G=None, G_ema=stored_as_released("TriPlaneGenerator", **modules())), protocol=4))
    with pytest.raises(UserError, match=r"EG3D \(TriPlaneGenerator") as error:
        legacy.load_network_pkl(path)
    assert one_line(error).startswith(f"{path}: ")


@pytest.mark.parametrize("source, dest, message", [
    (golden_pickle("stylegan2"), "x.txt", "--dest=x.txt: .*\\.pkl"),
    (golden_pickle("stylegan2"), "nowhere/x.pkl", "no folder nowhere"),
    (Path(__file__), "x.pkl", "test_legacy.py: not a network file"),
])
def test_converter_errors_are_one_line(source, dest, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(legacy.main, [f"--source={source}", f"--dest={dest}"])
    assert result.exit_code == 1 and os.listdir(tmp_path) == []
    output = result.output.strip()
    assert output.startswith("Error: ") and "\n" not in output
    assert re.search(message, output)


def test_a_discriminator_is_no_generator(tmp_path):
    from training.networks.discriminator import Discriminator
    D = Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=8)
    persistence.save(dict(G_ema=D), tmp_path / "d.pkl")
    with pytest.raises(UserError, match="d.pkl: its G_ema is a Discriminator") as error:
        legacy.load_network_pkl(tmp_path / "d.pkl")
    one_line(error)
