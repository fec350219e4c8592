"""Networks as .safetensors. That numbers survive the way there and back: test_legacy."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import legacy
from camera_utils import camera_for
from dnnlib import UserError
from network_files import safetensors_format
from torch_utils import persistence
from training import networks_raycond2

pytest.importorskip("safetensors")

ROOT = Path(__file__).parent.parent
GENERATOR = dict(z_dim=8, c_dim=25, w_dim=8, img_resolution=16, img_channels=3)
STATS = dict(yaw_range=[-0.5, 0.5], pitch_mean=0.1)


def tiny(**kwargs):
    torch.manual_seed(2)
    return networks_raycond2.Generator(z_dim=8, c_dim=25, w_dim=8, img_resolution=16, img_channels=3, channel_base=128,
                                       channel_max=8, num_fp16_res=0,
                                       mapping_kwargs=dict(num_layers=2), rays="pinhole",
                                       **kwargs).eval().requires_grad_(False)


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / "network-snapshot-000004.pkl"
    kwargs = dict(class_name="training.dataset.ImageFolderDataset", path="/home/alice/secret/faces.zip")
    persistence.save(dict(G=tiny(), D=None, G_ema=tiny(), augment_pipe=None, training_set_kwargs=kwargs,
                          camera_stats=STATS), path)
    return path


@pytest.fixture
def shared(snapshot):
    path = snapshot.with_suffix(".safetensors")
    result = CliRunner().invoke(legacy.main,
                                [f"--source={snapshot}", f"--dest={path}", "--licence=CC BY 4.0",
                                 "--origin=https://example.org"])
    assert result.exit_code == 0, result.output
    return path


def document_of(path):
    data = path.read_bytes()
    header = json.loads(data[8: 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(header["__metadata__"]["raycond"]), header


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_precision(shared, dtype):
    """Files that someone has made smaller: they work, in the precision of the network."""
    before, G = safetensors.torch.load_file(shared), legacy.load_generator(shared)
    document, _ = document_of(shared)
    safetensors.torch.save_file({name: tensor.to(dtype) for name, tensor in before.items()}, shared,
                                metadata=dict(raycond=json.dumps(document)))
    less = legacy.load_generator(shared)
    assert all(tensor.dtype == torch.float32 for tensor in less.state_dict().values())
    z, c = torch.randn(1, 8), camera_for("ffhq", 0.1, 0).to_label()
    assert (less(z, c, noise_mode="const") - G(z, c, noise_mode="const")).abs().max() < 0.1


def rewrite(path, document=None, **header):
    """The file with another document, or header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    old = json.loads(data[8: 8 + length])
    if document is not None:
        old["__metadata__"]["raycond"] = document if isinstance(document, str) else json.dumps(document)
    old.update(header)
    new = json.dumps(old).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length:])
    return path


def test_what_is_shared(shared, snapshot):
    document, header = document_of(shared)
    assert list(document["networks"]) == ["G_ema"] and document["networks"]["G_ema"]["rays"] == "pinhole"
    assert document["licence"] == "CC BY 4.0" and document["origin"] == "https://example.org"
    assert document["camera_stats"] == STATS
    assert b"secret" not in shared.read_bytes() and b"alice" not in shared.read_bytes()
    assert all(name.startswith("G_ema.") for name in header if name != "__metadata__")


def test_it_makes_the_same_images(shared, snapshot):
    z, c = torch.randn([2, 8]), camera_for("heads", yaw=0.2, pitch=0.1).to_label().expand(2, -1)
    expected = legacy.load_generator(snapshot)(z, c, noise_mode="const")
    G = legacy.load_generator(shared)
    assert torch.equal(G(z, c, noise_mode="const"), expected) and G.camera_stats == STATS and G.rays == "pinhole"
    for source in (io.BytesIO(shared.read_bytes()), shared.as_uri()):
        assert torch.equal(legacy.load_generator(source)(z, c, noise_mode="const"), expected)
    with open(shared, "rb") as stream:
        assert torch.equal(legacy.load_generator(stream)(z, c, noise_mode="const"), expected)
    data = legacy.load_network_pkl(shared)
    assert data["G"] is data["D"] is data["training_set_kwargs"] is None and data["licence"] == "CC BY 4.0"


def test_flags_survive(snapshot, tmp_path):
    G = tiny()
    G.mapping.train()
    G.synthesis.b4.requires_grad_(True)
    safetensors_format.save(dict(G=G), tmp_path / "g.safetensors")
    again = safetensors_format.load(tmp_path / "g.safetensors")["G"]
    assert [m.training for m in again.modules()] == [m.training for m in G.modules()]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in G.parameters()]


def test_no_training_code_is_needed(shared):
    code = (f"import sys, legacy; G = legacy.load_generator({str(shared)!r}); "
            "print([name for name in sys.modules if name.startswith('training.') and name.split('.')[1] in "
            "('training_loop', 'loss', 'dataset', 'phases', 'status', 'config', 'augment')], "
            "'matplotlib' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] False", done.stdout + done.stderr


def changed(**entries):
    def change(document):
        document["networks"]["G_ema"].update(entries)
        return document
    return change


@pytest.mark.parametrize("change, says", [
    (lambda d: "{", "not JSON"),
    (lambda d: "[" * 100_000, "not JSON"),
    (lambda d: json.dumps(d).replace("128", "NaN"), "NaN"),
    (lambda d: json.dumps(d).replace("128", "1e999"), "finite"),
    (lambda d: json.dumps(d).replace("0.1", "-1e400"), "finite"),              # of the camera statistics
    (lambda d: json.dumps(d).replace("128", "-Infinity"), "finite"),
    (lambda d: [], "another format"),
    (lambda d: dict(d, format=2), "another format"),
    (lambda d: dict(d, networks={}), "no network"),
    (lambda d: dict(d, networks={"../../G": d["networks"]["G_ema"]}), "expected some of"),
    (lambda d: dict(d, camera_stats=7), "another kind"),
    (lambda d: dict(d, licence=["x"]), "another kind"),
    (changed(class_name="os.system"), "os.system"),
    (changed(class_name="training.os.system"), "training.os.system"),
    (changed(class_name="../../etc/passwd"), "etc/passwd"),
    (changed(class_name=None), "class name"),
    (changed(init_kwargs=[]), "incomplete"),
    (changed(init_kwargs=dict(z_dim=8)), "cannot be built"),
    (changed(trainable=7), "not lists of names"),
    (changed(class_name="training.x." + "y" * 10 ** 6), "class name"),
    (changed(class_name="training.networks_stylegan2.Generator\n"), "not known"),
    (changed(init_args=[8, 25, 8, 2 ** 13, 3]), "cannot be built|far more numbers"),
    (changed(init_kwargs=dict(z_dim=2 ** 40)), "out of range"),
    (changed(init_kwargs=dict(GENERATOR, img_resolution=4096, channel_base=2 ** 20, channel_max=2 ** 12)),
     "far more numbers"),
    (changed(init_kwargs=dict(GENERATOR, img_resolution=2 ** 15)), "out of range"),
    (changed(init_kwargs=dict(GENERATOR, mapping_kwargs=dict(num_layers=10 ** 6))), "out of range"),
    (changed(init_args=[8, 25, 8, 2 ** 15, 3], init_kwargs={}), "out of range"),
    (changed(class_name="training.networks_stylegan3.Generator", init_kwargs=dict(
        GENERATOR, num_layers=2, num_critical=1, first_cutoff=2 ** -21, first_stopband=2 ** -20)),
     "out of range"),      # filters of 3 GB
])
def test_documents_that_are_not_ours(change, says, shared):
    document, _ = document_of(shared)
    with pytest.raises(UserError, match=says) as error:
        legacy.load_network_pkl(rewrite(shared, change(document)))
    assert shared.name in error.value.format_message() and "\n" not in error.value.format_message()


def test_files_that_are_not_ours(shared, tmp_path):
    whole = shared.read_bytes()
    document, header = document_of(shared)
    name = next(name for name in header if name != "__metadata__")
    cases = {"short": whole[:-5], "header": whole[:100], "liar": struct.pack("<Q", 2 ** 31) + whole[8:],
             "empty": struct.pack("<Q", 2) + b"{}"}
    for case, data in cases.items():
        path = tmp_path / f"{case}.safetensors"
        path.write_bytes(data)
        with pytest.raises(UserError, match=path.name):
            legacy.load_network_pkl(path)
    header[name]["shape"] = [2 ** 40]
    with pytest.raises(UserError, match="shared|snapshot"):
        legacy.load_network_pkl(rewrite(shared, **{name: header[name]}))


@pytest.mark.parametrize("change, says", [
    (lambda t: t.pop("G_ema.mapping.fc1.bias"), "lacks its tensor 'mapping.fc1.bias'"),
    (lambda t: t.update({"G_ema.more": torch.zeros(3)}), "no such tensor as 'more'"),
    (lambda t: t.update({"D.more": torch.zeros(3)}), "of no network"),
    (lambda t: t.update({"../../G": torch.zeros(3)}), "of no network"),
    (lambda t: t.update({"G_ema.mapping.fc1.bias": torch.zeros(9)}), r"the shape \[9\], expected \[8\]"),
    (lambda t: t.update({"G_ema.mapping.fc1.bias": torch.zeros(8, dtype=torch.int32)}), "stored as torch.int32"),
])
def test_tensors_that_do_not_fit(change, says, shared):
    with safetensors.safe_open(shared, framework="pt") as archive:
        tensors, metadata = {name: archive.get_tensor(name).clone() for name in archive.keys()}, archive.metadata()
    change(tensors)
    safetensors.torch.save_file(tensors, shared, metadata=metadata)
    with pytest.raises(UserError, match=says) as error:
        legacy.load_network_pkl(shared)
    assert "\n" not in error.value.format_message() and error.value.format_message().startswith(f"{shared}: ")


def test_claims_of_a_long_header(shared):
    data = shared.read_bytes()
    shared.write_bytes(struct.pack("<Q", 2 ** 25) + data[8:] + b" " * 2 ** 25)
    with pytest.raises(UserError, match="a header of 33554432 bytes"):
        legacy.load_network_pkl(shared)


def test_without_the_package(shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors") as error:
        legacy.load_network_pkl(shared)
    assert "\n" not in error.value.format_message()


def test_networks_are_independent_of_the_file(shared):
    """The package maps files into memory; who overwrites one must not change networks, or end processes."""
    G = legacy.load_generator(shared)
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    with open(shared, "r+b") as stream:
        stream.truncate(1000)
        stream.write(bytes(500))
    assert all(torch.equal(tensor, before[name]) for name, tensor in G.state_dict().items())


@pytest.mark.parametrize("dest, what", [("x.pkl", "G_ema"), ("x.safetensors", "all"), ("x.safetensors", "G_ema")])
def test_where_the_data_were_is_nobodys_business(dest, what, snapshot, tmp_path):
    result = CliRunner().invoke(legacy.main, [f"--source={snapshot}", f"--dest={tmp_path / dest}", f"--what={what}"])
    assert result.exit_code == 0, result.output
    assert b"alice" not in (tmp_path / dest).read_bytes()
    data = legacy.load_network_pkl(tmp_path / dest)
    assert data["camera_stats"] == STATS and data["training_set_kwargs"] is None
    assert (data["G"] is None) == (what == "G_ema")


def test_dtypes_layouts_and_shared_memory(tmp_path):
    G = tiny().half()
    memory = torch.randn(16)
    G.mapping.fc0.bias.data, G.mapping.fc1.bias.data = memory[:8], memory[4:12]
    G.synthesis.b16.conv0.weight.data = G.synthesis.b16.conv0.weight.data.to(memory_format=torch.channels_last)
    safetensors_format.save(dict(G=G), tmp_path / "g.safetensors")
    again = safetensors_format.load(tmp_path / "g.safetensors")["G"]
    for (name, a), (_, b) in zip(G.state_dict().items(), again.state_dict().items()):
        assert b.dtype == torch.float32 and torch.equal(a.float(), b), name


def test_the_writer_refuses(snapshot, tmp_path):
    for arguments, says in [([f"--source={snapshot}", "--dest=x.onnx"], ".safetensors"),
                            ([f"--source={snapshot}", "--dest=no/where/x.pkl"], "no folder")]:
        result = CliRunner().invoke(legacy.main, arguments)
        assert result.exit_code != 0 and says in result.stderr


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "g.safetensors"
    path.write_bytes(b"before")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        safetensors_format.save(dict(G_ema=tiny()), path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
