"""The notebooks run from top to bottom, the first three on a small stand-in for the networks that have to be downloaded."""

import ast
import os
import pickle
from pathlib import Path

import pytest
import torch

from training import networks_raycond2, snapshots

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


def execute(notebook, monkeypatch, **environment):
    """Runs it in a kernel of this interpreter, in its own folder, and returns its images."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    for key, value in dict(environment, OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(key, str(value))
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"], outputs
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    torch.manual_seed(0)
    G = networks_raycond2.Generator(z_dim=16, c_dim=25, w_dim=16, img_resolution=16, img_channels=3, mapping_kwargs=dict(num_layers=2),
                                    channel_base=256, channel_max=16)
    path = tmp_path_factory.mktemp("network") / "stand-in.pkl"
    snapshots.save_network(str(path), G, None, G, None, {}, None)
    return path


@pytest.mark.parametrize("name", DOWNLOADED)
def test_runs_on_a_stand_in(name, stand_in, monkeypatch):
    images = execute(read(name), monkeypatch, RAYCOND_NETWORK=stand_in)
    assert len(images) == (6 if name == "Cars" else 5) and len(set(images)) == len(images)


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
    assert len(images) == 7 and len(set(images)) == len(images)


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
    assert "sys.path" not in text and "/home/" not in text and "/work/" not in text and "/tmp/" not in text


def test_heads_shows_its_pictures():
    if not HEADS.exists():
        pytest.skip("checkpoints/raycond2-heads-32x32.pkl is not there")
    outputs = [output for cell in read("Heads").cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7
    assert not any(output.output_type == "error" for output in outputs)


def test_a_pickle_of_ours_opens_as_the_notebooks_say(stand_in):
    with open(stand_in, "rb") as stream:
        G = pickle.load(stream)["G_ema"]
    assert G(torch.zeros(1, 16), torch.zeros(1, 25)).shape == (1, 3, 16, 16)
