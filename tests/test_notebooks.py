"""The notebooks run from top to bottom, the first three on a small stand-in for the networks that have to be downloaded."""

import ast
import base64
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import notebook_utils
from camera_utils import Camera, camera_for
from training import networks_raycond2
from training.run import snapshots

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
HEADS = ROOT / "checkpoints" / "raycond2-heads-32x32.pkl"
DOWNLOADED = {
    "FFHQ": ["raycond2-ffhq-{RESOLUTION}x{RESOLUTION}.pkl", "RESOLUTION = 512 ", "1024"],
    "AFHQ": ["raycond2-afhqcat-512x512.pkl"],
    "Cars": ["{NAME}.pkl", 'NAME = "raycond2-cars-128x128"', "raycond3-t-cars-128x128"],
}


def read(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


# In front of each notebook: as if the project were not installed. The kernel runs in the notebook's folder.
NOT_INSTALLED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path
                    if "editable" not in repr(finder) + str(getattr(finder, "__module__", ""))]
sys.path[:] = [folder for folder in sys.path if folder.rstrip("/") != {root!r}]
try:
    import legacy
    raise SystemExit("legacy can still be imported")
except ImportError:
    pass
"""


def execute(notebook, monkeypatch, **environment):
    """Runs it in a kernel of this interpreter, in its own folder, as if the project was not installed. Returns PNGs."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for key, value in dict(environment, OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(key, str(value))
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NOT_INSTALLED.format(root=str(ROOT))))
    notebook.cells.append(nbformat.v4.new_code_cell("print(sys.modules['notebook_utils'].__file__)"))
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"], outputs
    assert Path(outputs[-1].text.strip()) == ROOT / "notebook_utils.py"
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    torch.manual_seed(0)
    G = networks_raycond2.Generator(z_dim=16, c_dim=25, w_dim=16, img_resolution=16, img_channels=3, mapping_kwargs=dict(num_layers=2),
                                    channel_base=256, channel_max=16)
    path = tmp_path_factory.mktemp("network") / "stand-in.pkl"
    snapshots.save_network(str(path), G, None, G, None, {}, None)
    return path


SIZES = {                                                           # (rows, columns) of the sheets
    "FFHQ": [(1, 1), (1, 6), (3, 3), *3 * [(1, 3)]],
    "AFHQ": [(1, 1), (1, 6), (3, 3), *3 * [(1, 3)]],
    "Cars": [(1, 1), (4, 8), (1, 12), (3, 8), *3 * [(1, 8)]],
    "Heads": [(1, 1), (1, 7), (3, 7), *5 * [(1, 7)]],
}


def check_sizes(images, name):
    wanted = [(128 * rows, 128 * columns, 3) for rows, columns in SIZES[name]]
    assert [pixels(image).shape for image in images] == wanted
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_runs_on_a_stand_in(name, stand_in, monkeypatch):
    images = execute(read(name), monkeypatch, RAYCOND_NETWORK=stand_in)
    check_sizes(images, name)
    with open(stand_in, "rb") as stream:
        G = pickle.load(stream)["G_ema"]
    torch.manual_seed(0)
    z = torch.randn(1, 16)                                          # as the released notebooks draw it
    label = camera_for("cars", 0.6, 0.4).to_label() if name == "Cars" else camera_for(name.lower(), 0.2, 0.0).to_label()
    assert_first_view(images[0], G(z, label, truncation_psi=0.7, noise_mode="const"))
    if name == "Cars":                                              # 32 views over the upper hemisphere, z up
        torch.manual_seed(0)
        h, v = torch.rand(32), torch.rand(32)
        azimuth, zenith = 2 * torch.pi * h, torch.arccos(v) + 0.5
        position = 1.3 * torch.stack([zenith.sin() * azimuth.cos(), zenith.sin() * azimuth.sin(), zenith.cos()], dim=1)
        camera = Camera.look_at(*position_angles(position), 1.3, focal=1.7074, up="z")
        torch.testing.assert_close(camera.origin, position, atol=1e-5, rtol=0)
        assert_first_view(images[1], G(z, camera[0].to_label(), truncation_psi=0.7, noise_mode="const"))


def position_angles(position):
    return torch.atan2(position[:, 0], -position[:, 1]), torch.asin(position[:, 2] / 1.3)


def assert_first_view(image, wanted):
    """The upper left view is this image of 16 px, shown eight times as large."""
    wanted = (wanted[0].detach() * 127.5 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()           # [16, 16, 3]
    assert np.abs(pixels(image)[:128:8, :128:8].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("name", DOWNLOADED)
def test_opens_the_file_that_checkpoints_txt_lists(name):
    source = "\n".join(code_of(read(name)))
    listed = (ROOT / "checkpoints" / "checkpoints.txt").read_text()
    for part in ["../checkpoints/", *DOWNLOADED[name]]:
        assert part in source, part
    for file in ("raycond2-ffhq-512x512", "raycond2-ffhq-1024x1024", "raycond2-afhqcat-512x512", "raycond2-cars-128x128", "raycond3-t-cars-128x128"):
        assert f"\n{file}.pkl " in listed


def test_says_which_file_is_missing(monkeypatch):
    if (ROOT / "checkpoints" / "raycond2-afhqcat-512x512.pkl").exists():
        pytest.skip("raycond2-afhqcat-512x512.pkl is here")
    monkeypatch.delenv("RAYCOND_NETWORK", raising=False)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"raycond2-afhqcat-512x512\.pkl"):
        execute(read("AFHQ"), monkeypatch)


def test_heads_runs_on_the_shipped_network(monkeypatch):
    if not HEADS.exists():
        pytest.skip("checkpoints/raycond2-heads-32x32.pkl is not there")
    images = execute(read("Heads"), monkeypatch)
    check_sizes(images, "Heads")


@pytest.mark.parametrize("name", [*DOWNLOADED, "Heads"])
def test_is_kept_clean(name):
    """Outputs only in Heads; explicit imports, all in the first code cell; nothing that names a private path."""
    notebook = read(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if name != "Heads":
        assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    for number, cell in enumerate(cells):
        imports = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not imports or number == 0, cell.source
        assert not any(alias.name == "*" for node in imports for alias in node.names)
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert len(text) < 400_000 and "widget-view" not in text
    assert "/home/" not in text and "/work/" not in text and "/tmp/" not in text


def test_heads_shows_its_pictures():
    if not HEADS.exists():
        pytest.skip("checkpoints/raycond2-heads-32x32.pkl is not there")
    outputs = [output for cell in read("Heads").cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(SIZES["Heads"])
    assert not any(output.output_type == "error" for output in outputs)


def test_a_pickle_of_ours_opens_as_the_notebooks_say(stand_in):
    with open(stand_in, "rb") as stream:
        G = pickle.load(stream)["G_ema"]
    assert G(torch.zeros(1, 16), torch.zeros(1, 25)).shape == (1, 3, 16, 16)


# --- what they share

def test_views_are_shown_at_their_own_size():
    images = torch.rand(5, 3, 512, 512) * 2 - 1
    sheet = np.asarray(notebook_utils.make_sheet(images))
    assert sheet.shape == (1024, 1536, 3)                           # three beside each other, white where there is none
    for number, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        view = sheet[512 * row : 512 * row + 512, 512 * column : 512 * column + 512]
        assert np.abs(view - ((images[number].permute(1, 2, 0).numpy() + 1) * 127.5)).max() <= 1
    assert (sheet[512:, 1024:] == 255).all()
    assert notebook_utils.make_sheet(torch.zeros(2, 3, 1024, 1024)).size == (1024, 2048)
    assert notebook_utils.make_sheet(torch.zeros(2, 1, 200, 200)).mode == "L"
    assert notebook_utils.make_sheet(torch.zeros(3, 3, 64, 64), columns=2).size == (256, 256)


def test_layout_grid_is_row_by_row():
    img = torch.arange(6).float()[:, None, None, None].expand(6, 3, 2, 4)
    grid = notebook_utils.layout_grid(img, grid_w=3, grid_h=2, float_to_uint8=False)
    assert grid.shape == (4, 12, 3) and grid[::2, ::4, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert notebook_utils.layout_grid(img / 3 - 1, grid_h=3, chw_to_hwc=False, to_numpy=False).shape == (3, 6, 8)
    assert notebook_utils.layout_grid(torch.tensor([-1.0, 0, 1])[:, None, None, None]).ravel().tolist() == [0, 128, 255]


def test_generate_takes_one_latent_or_one_camera(stand_in):
    G = notebook_utils.load_network(stand_in, "cpu")
    z, camera = notebook_utils.latent(G, 5, count=3), camera_for("ffhq", torch.tensor([-0.3, 0.0, 0.3]), torch.zeros(3))
    torch.manual_seed(5)
    assert torch.equal(z, torch.randn(3, 16)) and not any(parameter.requires_grad for parameter in G.parameters())
    for zs, cs in ((z, camera), (z[:1], camera), (z, camera[0]), (z, camera.to_label())):
        labels = cs if isinstance(cs, torch.Tensor) else cs.to_label()
        wanted = G(zs.expand(3, -1), labels.expand(3, -1), truncation_psi=0.5, noise_mode="const")
        torch.testing.assert_close(notebook_utils.generate(G, zs, cs, 0.5, batch=2), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(AssertionError, match="2 latents and 3 cameras"):
        notebook_utils.generate(G, z[:2], camera)


def test_sliders_draw_what_they_say(stand_in, monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    G = notebook_utils.load_network(stand_in, "cpu")
    shown, controls = [], {}
    monkeypatch.setattr(notebook_utils, "show", shown.append)
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, **sliders: controls.update(sliders, draw=draw))
    notebook_utils.explore(G, lambda yaw, pitch: camera_for("ffhq", yaw, pitch), (-0.6, 0.4), (-0.2, 0.2), seed=3)
    draw = controls.pop("draw")
    ranges = {name: (slider.min, slider.max) for name, slider in controls.items()}
    assert ranges == dict(seed=(0, 999), yaw=(-0.6, 0.4), pitch=(-0.2, 0.2), truncation=(0, 1))
    draw(**{name: slider.value for name, slider in controls.items()})
    assert controls["yaw"].value == pytest.approx(-0.1) and controls["truncation"].value == 0.7
    label = camera_for("ffhq", -0.1, 0.0).to_label()
    wanted = G(notebook_utils.latent(G, 3), label, truncation_psi=0.7, noise_mode="const")
    torch.testing.assert_close(shown[0], wanted, atol=1e-5, rtol=1e-5)


def test_without_ipywidgets_one_line_says_how_to_get_sliders(stand_in, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    notebook_utils.explore(notebook_utils.load_network(stand_in, "cpu"), None, (-1, 1), (-1, 1))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "pip install ipywidgets" in said


def test_old_notebooks_take_all_names_at_once():
    names = {}
    exec("from notebook_utils import *", names)
    assert {"load_network", "generate", "latent", "layout_grid", "show", "explore"} <= set(names)
    assert "torch" not in names
