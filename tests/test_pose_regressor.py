"""The pose regressor and the scene embedding: what they are trained on, what they learn, what is in their files."""

import json
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import camera_labels, write_dataset
from toy_views import toy_world

from camera_utils import Camera
from dataset_preprocessing.procedural import render_dataset
from dnnlib.util import UserError
from metrics.detectors import pose_regressor, scene_embedding, training
from metrics.detectors.convnet import ConvNet, area_weights, resize_by_area, save_network
from metrics.detectors.dataset import read_scene_ids, shows_scenes_again
from metrics.detectors.training import Recipe, augment, choose_held_out, dataset_kwargs_for, load_images
from metrics.pose_regressor import main as pose_command
from metrics.scene_embedding import main as scene_command

QUICK = Recipe(resolution=8, kimg=0.3, batch=16)


def load(path):
    extra = {"metadata.json": ""}
    network = torch.jit.load(path, _extra_files=extra)
    return network, json.loads(extra["metadata.json"])


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A zip of 300 heads from 4 sides each, 16 px."""
    path = str(tmp_path_factory.mktemp("heads") / "heads.zip")
    render_dataset("heads", 300, 4, 16, 1, 0, path, progress=False)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(zip of toy views, its pose regressor, its scene embedding)."""
    return toy_world(tmp_path_factory.getbasetemp())


# ---------------------------------------------------------------------------------------------------------------------
# The network.

@pytest.mark.parametrize("size_in,size_out", [(32, 8), (33, 8), (8, 8), (5, 16), (7, 3)])
def test_area_weights_are_overlaps_of_intervals(size_in, size_out):
    fine = np.arange(size_in * size_out)                # both grids are unions of these small pieces
    expected = np.zeros([size_out, size_in])
    np.add.at(expected, (fine // size_in, fine // size_out), 1 / size_in)
    np.testing.assert_allclose(area_weights(size_in, size_out, torch.device("cpu")).numpy(), expected, atol=1e-6)


def test_resize_is_the_mean_of_blocks():
    image = torch.rand([2, 3, 24, 16])
    expected = image.reshape(2, 3, 8, 3, 8, 2).mean(dim=(3, 5))
    torch.testing.assert_close(resize_by_area(image, 8), expected)


def test_file_takes_what_detectors_are_given(tmp_path):
    path = str(tmp_path / "network.pt")
    network = ConvNet(16, 5).eval()
    save_network(path, network, dict(data="x"))
    loaded, metadata = load(path)
    assert metadata == dict(data="x")
    images = torch.randint(256, [2, 3, 40, 40], dtype=torch.uint8)
    vectors = loaded(images)
    assert vectors.shape == (2, 5) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(vectors, network(images.float()))
    torch.testing.assert_close(loaded(images[:, :1]), loaded(images[:, :1].repeat(1, 3, 1, 1)))


# ---------------------------------------------------------------------------------------------------------------------
# The data.

def test_scenes_are_held_out_whole():
    scenes = np.repeat(np.arange(50), 3)[np.random.RandomState(0).permutation(150)]
    held_out = choose_held_out(scenes, seed=1)
    assert held_out.sum() == 15
    assert not set(scenes[held_out]) & set(scenes[~held_out])
    assert (held_out == choose_held_out(scenes, seed=1)).all() and (held_out != choose_held_out(scenes, seed=2)).any()


def test_a_mirrored_image_is_held_out_with_its_original(camera_zip):
    images = load_images(dataset_kwargs_for(camera_zip, mirror=True), QUICK, progress=False)
    assert len(images.pixels) == 128 and not images.by_scene
    assert torch.equal(images.held_out[:64], images.held_out[64:]) and 0 < images.held_out.sum() < 64
    assert torch.equal(images.pixels[0], images.pixels[64].flip(-1))
    forward = pose_regressor.viewing_directions(images.labels)
    torch.testing.assert_close(forward[:64] * torch.tensor([-1.0, 1, 1]), forward[64:])


def test_viewing_direction_is_the_third_column_of_cam2world():
    labels = torch.tensor(camera_labels(5))
    torch.testing.assert_close(pose_regressor.viewing_directions(labels), labels[:, [2, 6, 10]])


def test_augmentation_moves_nothing_but_changes_each_image():
    x = torch.full([64, 3, 16, 16], -0.5)
    x[:, :, 5, 11] = 1
    y = augment(x, torch.Generator().manual_seed(0))
    assert (y.mean(dim=1).flatten(1).argmax(dim=1) == 5 * 16 + 11).all()
    assert y.mean(dim=(1, 2, 3)).std() > 0.02
    assert torch.equal(y, augment(x, torch.Generator().manual_seed(0)))


def test_scene_ids_follow_the_order_of_the_data_set(tmp_path):
    names = [f"00000/img{i:08d}.png" for i in range(4)]
    path = write_dataset(tmp_path / "a.zip", camera_labels(4), scenes=[[names[i], scene] for i, scene in [(3, "b"), (0, "b"), (2, "a"), (1, "c")]])
    ids = read_scene_ids(path)
    assert ids[0] == ids[3] and len({int(ids[0]), int(ids[1]), int(ids[2])}) == 3
    assert shows_scenes_again(ids) and not shows_scenes_again(ids[:3]) and not shows_scenes_again(None)


def test_scene_ids_of_some_images_only_are_refused(tmp_path):
    path = write_dataset(tmp_path / "a.zip", camera_labels(3), scenes=[["00000/img00000000.png", 1]])
    with pytest.raises(UserError, match="2 of 3 images have no entry.*img00000001"):
        read_scene_ids(path)


# ---------------------------------------------------------------------------------------------------------------------
# The pose regressor.

@pytest.mark.slow
def test_pose_regressor_learns_heads(heads, tmp_path):
    metadata = pose_regressor.train_pose_regressor(dataset_kwargs_for(heads), str(tmp_path / "pose.pt"), Recipe(kimg=12, batch=32), progress=False)
    assert metadata["held_out_mean_deg"] < 0.5 * metadata["chance_deg"]


def test_pose_regressor_learns(world):
    toy, path, _ = world
    network, metadata = load(path)
    assert metadata["held_out_by"] == "scene" and metadata["num_images"] + metadata["num_held_out"] == 400 and metadata["resolution"] == 16
    assert metadata["held_out_mean_deg"] < 0.5 * metadata["chance_deg"]
    # The stored error, from the file and the zip alone.
    images = load_images(dataset_kwargs_for(toy), Recipe(resolution=16), progress=False)
    cosine = (network(images.pixels[images.test]) * Camera.from_label(images.labels[images.test]).forward).sum(dim=1)
    assert np.degrees(np.arccos(cosine.clamp(-1, 1).numpy())).mean() == pytest.approx(metadata["held_out_mean_deg"], abs=0.05)


def test_training_is_a_function_of_the_seed(camera_zip, tmp_path):
    kwargs, before = dataset_kwargs_for(camera_zip), torch.get_rng_state()
    noise = torch.randint(256, [4, 3, 16, 16])
    outputs = []
    for seed in (0, 0, 1):
        path = str(tmp_path / "pose.pt")
        pose_regressor.train_pose_regressor(kwargs, path, Recipe(resolution=8, kimg=0.1, batch=16, seed=seed), progress=False)
        outputs.append(load(path)[0](noise))
        torch.rand(3)
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])
    torch.set_rng_state(before)
    expected = torch.rand(2)
    torch.set_rng_state(before)
    pose_regressor.train_pose_regressor(kwargs, path, QUICK, progress=False)
    assert torch.equal(torch.rand(2), expected)         # the global generator was left alone


def test_command(camera_zip, tmp_path):
    dest = tmp_path / "pose.pt"
    result = CliRunner().invoke(pose_command, [f"--data={camera_zip}", f"--dest={dest}", "--kimg=0.1", "--batch=16", "--resolution=8", "--device=cpu"])
    assert result.exit_code == 0, result.output
    metadata = load(dest)[1]
    assert f"held-out error {metadata['held_out_mean_deg']:.2f} deg" in result.output and f"chance {metadata['chance_deg']:.2f} deg" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pose.pt"]


@pytest.mark.parametrize("command", [pose_command, scene_command])
def test_mistakes_are_one_line(command, camera_zip, class_zip, tmp_path):
    def refusal(data, dest):
        result = CliRunner().invoke(command, [f"--data={data}", f"--dest={dest}", "--device=cpu"])
        assert result.exit_code == 1 and result.output.startswith("Error: ") and len(result.output.splitlines()) == 1, result.output
        return result.output

    assert "--dest=" in refusal(camera_zip, tmp_path / "absent" / "a.pt")
    assert "--dest=" in refusal(camera_zip, tmp_path)
    assert "absent.zip" in refusal(tmp_path / "absent.zip", tmp_path / "a.pt")
    assert ("no cameras" if command is pose_command else "names no scenes") in refusal(class_zip, tmp_path / "a.pt")
    assert ("too few" if command is pose_command else "names no scenes") in refusal(camera_zip, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_file(camera_zip, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.torch.optim, "Adam", fail)
    with pytest.raises(KeyboardInterrupt):
        pose_regressor.train_pose_regressor(dataset_kwargs_for(camera_zip), str(tmp_path / "pose.pt"), QUICK, progress=False)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# The scene embedding.

def test_views_by_scene_lists_each_scene_with_two_views():
    scenes = torch.tensor([4, 1, 4, 2, 1, 4, 7])
    items = torch.tensor([0, 1, 2, 3, 4, 6])            # item 5 is held out
    table, first, views = scene_embedding.views_by_scene(scenes, items)
    assert [set(table[f:f + n].tolist()) for f, n in zip(first, views)] == [{1, 4}, {0, 2}]


def test_contrastive_loss_is_its_definition():
    vectors = torch.nn.functional.normalize(torch.randn([6, 4], dtype=torch.float64), dim=1)
    terms = []
    for i in range(6):
        scores = {j: float(torch.exp(vectors[i] @ vectors[j] / 0.2)) for j in range(6) if j != i}
        terms.append(-np.log(scores[(i + 3) % 6] / sum(scores.values())))
    assert float(scene_embedding.contrastive_loss(vectors, temperature=0.2)) == pytest.approx(np.mean(terms), rel=1e-12)


def test_scores_of_verification():
    rng = np.random.RandomState(0)
    high, low = rng.randint(0, 9, 40) + 2, rng.randint(0, 9, 60)
    pairs = high[:, None] - low[None]
    assert scene_embedding.area_under_curve(high, low) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert scene_embedding.verification_accuracy(np.array([3.0, 4, 5]), np.array([0.0, 1, 3.5])) == pytest.approx((1 + 2 / 3) / 2)
    assert scene_embedding.verification_accuracy(high + 20, low) == 1


@pytest.mark.slow
def test_scene_embedding_learns_heads(heads, tmp_path):
    path = str(tmp_path / "scene.pt")
    metadata = scene_embedding.train_scene_embedding(dataset_kwargs_for(heads), path, Recipe(kimg=6, batch=128), progress=False)
    network, stored = load(path)
    assert stored == metadata and metadata["held_out_auc"] > 0.95
    # From the file and the zip alone: views of held-out scenes find each other.
    images = load_images(dataset_kwargs_for(heads), Recipe(resolution=16), progress=False)
    vectors, scenes = network(images.pixels[images.test]), images.scenes[images.test]
    nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(dim=1)
    assert (scenes[nearest] == scenes).float().mean() > 0.7


def test_single_views_are_refused(tmp_path):
    path = str(tmp_path / "single.zip")
    render_dataset("heads", 4, 1, 8, 1, 0, path, progress=False)
    with zipfile.ZipFile(path) as archive:
        assert "scenes" in json.loads(archive.read("dataset.json"))
    with pytest.raises(UserError, match="4 images show 4 scenes, each once; .* --views-per-scene=6"):
        scene_embedding.train_scene_embedding(dataset_kwargs_for(path), str(tmp_path / "a.pt"))


def test_scene_embedding_learns(world):
    toy, _, path = world
    network, metadata = load(path)
    assert metadata["held_out_auc"] > 0.95 and metadata["held_out_within"] > metadata["held_out_between"] + 0.3
    # From the file and the zip alone: a view's nearest neighbour is mostly of its scene.
    images = load_images(dataset_kwargs_for(toy), Recipe(resolution=16), progress=False)
    vectors, scenes = network(images.pixels[images.test]), images.scenes[images.test]
    nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(dim=1)
    assert (scenes[nearest] == scenes).float().mean() > 0.7
