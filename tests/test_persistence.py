"""Networks and tensors in pickles: nothing is lost, nothing is code."""

import copy
import importlib
import io
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dnnlib import EasyDict, UserError
from dnnlib.util import RENAMED, get_obj_by_name
from torch_utils import persistence
from training import networks_raycond2
from training.networks import discriminator

ROOT = Path(__file__).parents[1]


@persistence.persistent_class
class Net(torch.nn.Module):
    """A stand-in with all that a module can hold."""

    constructed = 0

    def __init__(self, width, act="relu", *, options=None):
        super().__init__()
        Net.constructed += 1
        self.act = act
        self.fc = torch.nn.Linear(width, width)
        self.tied = torch.nn.Linear(width, width, bias=False)
        self.tied.weight = self.fc.weight
        self.dropout = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.Parameter(torch.randn([]), requires_grad=False)
        self.register_buffer("kernel", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)
        self.register_buffer("count", torch.zeros([], dtype=torch.int64))
        self.register_buffer("scratch", torch.arange(width), persistent=False)

    def forward(self, x):
        return getattr(torch, self.act)(self.tied(self.fc(x))) * self.frozen + self.count


@persistence.persistent_class
class WideNet(Net):
    def __init__(self, factor=2):
        super().__init__(4 * factor)


class Undecorated(Net):
    pass


@persistence.persistent_class
class Counter:
    def __init__(self, start, step=1):
        self.value = start
        self.step = step


def tiny_generator():
    torch.manual_seed(1)
    return networks_raycond2.Generator(z_dim=8, c_dim=25, w_dim=8, img_resolution=16, img_channels=3, channel_base=128,
                                       channel_max=8,
                                       mapping_kwargs=dict(num_layers=2), rays="pinhole").eval().requires_grad_(False)


def camera_labels(n):
    pose = torch.eye(4).repeat(n, 1, 1)
    pose[:, 2, 3] = -2.7
    return torch.cat([pose.flatten(1), torch.tensor([[4.26, 0, 0.5, 0, 4.26, 0.5, 0, 0, 1]]).repeat(n, 1)], dim=1)


def dumps(obj):
    stream = io.BytesIO()
    persistence.dump(obj, stream)
    return stream.getvalue()


def names_in(data):
    """All module.name that a pickle of protocol 4 or 5 refers to."""
    names, strings, memo = set(), [], {}
    for opcode, arg, _ in pickletools.genops(data):
        if "UNICODE" in opcode.name:
            strings.append(arg)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif "GET" in opcode.name:
            strings.append(memo[arg])
        elif opcode.name == "STACK_GLOBAL":
            names.add(f"{strings[-2]}.{strings[-1]}")
        assert opcode.name not in ("GLOBAL", "INST"), opcode.name
    return names


def assert_same_tensors(a, b):
    assert type(a) is type(b)
    for (name, x), (other_name, y) in zip([*a.named_parameters(), *a.named_buffers()],
                                          [*b.named_parameters(), *b.named_buffers()], strict=True):
        assert name == other_name and x.dtype == y.dtype and x.requires_grad == y.requires_grad, name
        assert torch.equal(x, y) and x.stride() == y.stride(), name


# ---------------------------------------------------------------------------------------------------------------------
# Round trips.

def test_a_new_process_computes_the_same_bits(tmp_path):
    """Plain pickle.load, from another folder, with nothing imported but the standard library and torch."""
    G = tiny_generator()
    z, c = torch.randn([2, 8]), camera_labels(2)
    persistence.save(dict(G_ema=G, z=z, c=c), tmp_path / "net.pkl")
    script = ("import pickle, torch\n"
              "data = pickle.load(open('net.pkl', 'rb'))\n"
              "G = data['G_ema']\n"
              "assert not G.training and not any(p.requires_grad for p in G.parameters())\n"
              "assert G.init_kwargs.rays == 'pinhole' and G.rays == 'pinhole', G.init_kwargs\n"
              "torch.save(G(data['z'], data['c'], noise_mode='const'), 'out.pt')\n")
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS=str(torch.get_num_threads()))
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "out.pt"), G(z, c, noise_mode="const"))


@pytest.mark.parametrize("write", [dumps, *(lambda obj, p=p: pickle.dumps(obj, protocol=p) for p in (2, 3, 4, 5))])
def test_module_round_trip(write):
    torch.manual_seed(0)
    net = Net(5, act="tanh", options=EasyDict(a=[1, (2, None)], b=np.float32(0.5)))
    net.count += 7
    net.scratch += 1
    net.fc.requires_grad_(False)
    net.dropout.train(False)
    loaded = pickle.loads(write(net))
    assert_same_tensors(net, loaded)
    assert loaded.training and not loaded.dropout.training and loaded.fc.training
    assert loaded.tied.weight is loaded.fc.weight
    assert isinstance(loaded.frozen, torch.nn.Parameter) and set(loaded.state_dict()) == set(net.state_dict())
    assert loaded.init_args == (5,) and loaded.init_kwargs == dict(act="tanh", options=dict(a=[1, (2, None)], b=0.5))
    x = torch.randn(3, 5)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    loaded.fc.weight.data.add_(1)                                  # memory of its own, which can be written to
    assert not torch.equal(loaded.fc.weight, net.fc.weight)


def test_networks_of_the_project_keep_flags_and_memory_format():
    D = discriminator.Discriminator(c_dim=25, img_resolution=16, img_channels=3, channel_base=128, channel_max=8,
                                    dcond="both", rays="pinhole",
                                    num_fp16_res=2, block_kwargs=dict(fp16_channels_last=True, freeze_layers=2))
    loaded = pickle.loads(dumps(D))
    assert_same_tensors(D, loaded)
    assert loaded.training and loaded.conditioning.convention == "pinhole"
    assert {n for n, _ in loaded.named_buffers()} == {n for n, _ in D.named_buffers()}


def test_files_hold_no_code_and_few_names():
    assert names_in(dumps(dict(G=tiny_generator(), kwargs=dict(path="x.zip")))) == {
        "torch_utils.persistence._reconstruct_persistent_obj", "torch_utils.persistence.decode_tensor"}
    meta = tiny_generator().__reduce_ex__(5)[1][0]
    assert type(meta) is dict and set(meta) == {"type", "version", "class_name", "init_args", "init_kwargs", "state"}
    assert meta["class_name"] == "training.networks_raycond2.Generator" and meta["type"] == "class"
    assert type(meta["init_kwargs"]["mapping_kwargs"]) is dict


@pytest.mark.parametrize("old", RENAMED)
def test_a_class_that_moved_is_found_by_its_old_name(old):
    """In network files and in configurations."""
    cls = get_obj_by_name(RENAMED[old])
    assert get_obj_by_name(old) is cls and persistence.is_persistent(cls) and f"{cls.__module__}.{cls.__qualname__}" == RENAMED[old]
    assert persistence.apply_import_hooks(dict(class_name=old)).class_name == RENAMED[old]


def test_a_file_with_the_old_name_of_a_class_opens():
    D = discriminator.Discriminator(c_dim=0, img_resolution=8, img_channels=3, channel_base=64, channel_max=8)
    stored = D.__reduce_ex__(5)[1][0]
    assert stored["class_name"] == "training.networks.discriminator.Discriminator"
    loaded = persistence._reconstruct_persistent_obj(dict(persistence.describe(D), class_name="training.discriminator.Discriminator"))
    assert type(loaded) is discriminator.Discriminator
    assert_same_tensors(D, loaded)


def test_file_is_barely_larger_than_its_tensors():
    net = WideNet(64)
    size = sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()])
    assert size < len(dumps(net)) < size + 2000


def test_object_that_is_no_module():
    counter = Counter(3, step=2)
    counter.value = 11
    loaded = pickle.loads(pickle.dumps(counter))
    assert (loaded.value, loaded.step, loaded.init_args, loaded.init_kwargs) == (11, 2, (3,), dict(step=2))


def test_persistent_argument_inside_of_another():
    @persistence.persistent_class
    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    around = Around(WideNet())
    assert_same_tensors(around, pickle.loads(dumps(around)))


def test_loading_draws_no_random_numbers():
    data = dumps([tiny_generator(), Net(4)])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pickle.loads(data)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Decorator.

def test_arguments_are_copies():
    options = dict(a=[1])
    net = Net(2, options=options)
    options["a"].append(2)
    net.init_kwargs.options["a"].append(3)
    assert net.init_kwargs == dict(options=dict(a=[1])) and isinstance(net.init_kwargs, EasyDict)
    with pytest.raises(AttributeError):
        net.init_kwargs = {}


def test_arguments_are_those_of_the_outermost_class():
    assert (WideNet(factor=1).init_args, WideNet(factor=1).init_kwargs) == ((), dict(factor=1))
    assert isinstance(WideNet(1), Net) and WideNet.__name__ == "WideNet"


def test_is_persistent():
    assert all(persistence.is_persistent(x) for x in (Net, Net(1), WideNet, Counter(1), networks_raycond2.Generator))
    assert not any(persistence.is_persistent(x) for x in (Undecorated, Undecorated(1), torch.nn.Linear, 3, None))


def test_undecorated_subclass_is_not_stored_as_its_base():
    with pytest.raises(pickle.PicklingError, match="Undecorated"):
        dumps(Undecorated(1))


def test_deepcopy():
    net = Net(3, act="tanh").eval()
    net.count += 4
    net.extra = [1]
    built = Net.constructed
    clone = copy.deepcopy(dict(a=net, b=net))
    assert Net.constructed == built and clone["a"] is clone["b"]
    clone = clone["a"]
    assert_same_tensors(net, clone)
    assert clone.init_kwargs == net.init_kwargs and not clone.training
    assert clone.extra == [1] and clone.extra is not net.extra
    assert clone.tied.weight is clone.fc.weight and clone.fc.weight is not net.fc.weight
    assert pickle.loads(dumps(clone)).init_args == (3,)


def test_import_hook(monkeypatch):
    monkeypatch.setattr(persistence, "_import_hooks", [])
    data = dumps(Net(2))
    seen = []

    def hook(meta):
        seen.append(meta.class_name)
        meta.init_kwargs["act"] = "tanh"
        return meta

    persistence.import_hook(hook)
    assert pickle.loads(data).act == "tanh"
    assert seen == [f"{__name__}.Net"]


# ---------------------------------------------------------------------------------------------------------------------
# Files that do not fit.

def meta_of(module):
    """What a pickle of it holds, with real tensors."""
    meta = module.__reduce_ex__(5)[1][0]
    meta["state"]["tensors"] = {name: stored.tensor.detach().clone() for name,
                                stored in meta["state"]["tensors"].items()}
    return meta


def changed(**changes):
    return {**meta_of(Net(3)), **changes}


def with_tensors(**tensors):
    meta = meta_of(Net(3))
    meta["state"]["tensors"].update(tensors)
    return meta


def without_tensor(name):
    meta = meta_of(Net(3))
    del meta["state"]["tensors"][name]
    return meta


@pytest.mark.parametrize("meta, message", [
    (without_tensor("fc.bias"), r"lacks its tensor 'fc\.bias'"),
    (with_tensors(surplus=torch.zeros(1)), "no such tensor as 'surplus'"),
    (with_tensors(kernel=torch.zeros(3)), r"'kernel' is stored with the shape \[3\], expected \[4\]"),
    (with_tensors(count=torch.zeros([])), r"'count' is stored as torch\.float32, expected torch\.int64"),
    (with_tensors(count="seven"), "'count' is stored as str"),
    (changed(state={}), "no tensors"),
    (changed(init_kwargs=dict(depth=3)), "depth"),
    (changed(init_args=None), "incomplete"),
    (changed(class_name="os.system"), r"'os\.system', which is not known; import the module"),
    (changed(class_name="training.nowhere.Net"), r"'training\.nowhere\.Net', which is not known; this version"),
    (changed(class_name="training.networks_raycond2.persistence.save"), "not known"),
    (changed(class_name="training.networks_raycond2.RayConditioning"), "not known"),
    ("net", "str, expected a dict"),
])
def test_what_does_not_fit_is_named(meta, message):
    with pytest.raises(UserError, match=message) as info:
        persistence._reconstruct_persistent_obj(meta)
    assert "\n" not in info.value.format_message()


def test_non_persistent_buffers_may_be_missing():
    net = persistence._reconstruct_persistent_obj(without_tensor("scratch"))
    assert torch.equal(net.scratch, torch.arange(3))


def test_class_from_elsewhere_must_be_imported(tmp_path, monkeypatch):
    """The file names the class; loading does not import it on its own."""
    (tmp_path / "my_models.py").write_text(
        "import torch\nfrom torch_utils import persistence\n"
        "@persistence.persistent_class\nclass Mine(torch.nn.Linear): pass\n")
    script = ("import os, pickle, sys\n"
              "data = open('mine.pkl', 'rb').read()\n"
              "try:\n"
              "    pickle.loads(data)\n"
              "except ValueError as error:\n"
              "    assert 'my_models' not in sys.modules\n"
              "    print(error)\n"
              "import my_models\n"
              "print(type(pickle.loads(data)).__name__)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    my_models = importlib.import_module("my_models")
    persistence.save(my_models.Mine(2, 3), tmp_path / "mine.pkl")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    refusal, name = done.stdout.splitlines()
    assert "'my_models.Mine', which is not known; import the module" in refusal and name == "Mine"


# ---------------------------------------------------------------------------------------------------------------------
# Tensors and files.

TENSORS = {
    "scalar":           torch.tensor(2.5),
    "empty":            torch.zeros([3, 0, 2]),
    "float16":          torch.randn(3, 4).half(),
    "bfloat16":         torch.randn(3, 4).bfloat16(),
    "float64":          torch.randn(5).double(),
    "bool":             torch.tensor([True, False]),
    "uint8":            torch.arange(7, dtype=torch.uint8),
    "complex64":        torch.randn(2, 2, dtype=torch.complex64),
    "conjugate":        torch.randn(2, 2, dtype=torch.complex64).conj(),
    "channels_last":    torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed":       torch.randn(3, 5).t(),
    "nan":              torch.tensor([float("nan"), float("inf"), -0.0]),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", TENSORS)
def test_tensor_bytes(name, protocol):
    tensor = TENSORS[name]
    loaded = pickle.loads(pickle.dumps(persistence.StoredTensor(tensor), protocol))
    assert loaded.dtype == tensor.dtype and loaded.shape == tensor.shape and loaded.stride() == tensor.stride()
    torch.testing.assert_close(loaded, tensor, rtol=0, atol=0, equal_nan=True)
    loaded.zero_()                                                 # writable


def test_views_become_dense():
    base = torch.arange(24.0).view(4, 6)
    for view in (base[:, ::2], base[1:3, 2:5], base[0].expand(3, 6), torch.tensor(3.0).expand(1)):
        data = dumps(view)
        assert torch.equal(pickle.loads(data), view)
        assert len(data) < view.numel() * 4 + 150                  # not the whole storage


@pytest.mark.parametrize("args", [
    (b"1234", "float32", [2]), (b"1234", "float31", [1]), (b"1234", "float32", [-1]), (b"1234", "float32", [1.0]),
                                  ([1, 2], "uint8", [2]),
    (b"1234", "uint8", [2, 2], [0, 0]), (b"1234", "uint8", [2, 2], [0]), (b"1234", "os.system", [4]),
                                  (b"1234", "float32", [True]),
])
def test_malformed_tensors_are_refused(args):
    with pytest.raises(ValueError, match="does not fit together"):
        persistence.decode_tensor(*args)


def test_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "net.pkl"
    persistence.save(dict(net=Net(2)), path)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        persistence.save(dict(net=Net(300), bad=lambda: None), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net.pkl"]
    persistence.save(dict(net=Net(3)), path)
    assert pickle.loads(path.read_bytes())["net"].init_args == (3,)


def test_rebuild_like():
    G = tiny_generator()
    assert persistence.rebuild_like(G, rays="pinhole") is G
    other = persistence.rebuild_like(G, rays="published")
    assert_same_tensors(G, other)
    assert other.rays == "published" and other.z_dim == 8 and not other.training
    assert other.mapping.fc0.weight.data_ptr() != G.mapping.fc0.weight.data_ptr()
