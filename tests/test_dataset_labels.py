"""The labels of a data set: their kinds, what is said about bad ones, and the judgement of cameras."""

import json

import numpy as np
import pytest
import torch
from dataset_helpers import camera_label, encode, labelled, pixels, refusal, rgb_files, with_cameras, with_labels, write

from camera_utils import Camera, load_camera_file
from metrics.detectors.dataset import read_scene_ids
from training.data.labels import Labels
from training.dataset import ImageFolderDataset

# --- kinds of labels

def test_class_numbers_become_onehot(tmp_path):
    data = labelled(tmp_path, [2, 0, 1, 4])
    assert data.has_onehot_labels and data.label_shape == [5] and data.label_dim == 5 and not data.has_camera_labels
    np.testing.assert_array_equal([data[i][1] for i in range(4)], np.eye(5)[[2, 0, 1, 4]])
    assert data[0][1].dtype == np.float32
    raw = data.get_details(3).raw_label
    assert raw.dtype == np.int64 and raw == 4


def test_the_number_of_classes_is_found_once():
    """Not at each label: that would look at all of them for each image."""
    labels = Labels(np.int64([2, 0, 4]))
    labels.raw[2] = 1
    assert labels.dim == 5 and labels.encoded(2).tolist() == [0, 1, 0, 0, 0]


def test_other_numbers_are_legal_and_not_mirrored(tmp_path):
    data = labelled(tmp_path, [[i, 0.5, -2] for i in range(4)], xflip=True)
    assert data.label_dim == 3 and not data.has_onehot_labels and not data.has_camera_labels
    np.testing.assert_array_equal(data.get_label(6), [2, 0.5, -2])


def test_labels_as_an_object(tmp_path):
    data = labelled(tmp_path, {name: [i, 1.0] for i, name in enumerate(sorted(rgb_files()))})
    np.testing.assert_array_equal(data.get_label(3), [3, 1])


def test_backslashes_in_label_names(tmp_path):
    pairs = [[name.replace("/", "\\"), [1.0]] for name in rgb_files()]
    assert ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(), pairs)), use_labels=True).label_dim == 1


def test_labels_of_absent_images_are_counted(tmp_path):
    pairs = [[name, [1.0]] for name in rgb_files(6)]
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(4), pairs)), use_labels=True)
    assert len(data) == 4
    note, = data.notes
    assert "2 labels" in note and "00000/img00000004.png" in note and str(tmp_path / "a.zip") in note


def test_labels_that_change_are_counted(tmp_path):
    pairs = [[name, [1.0]] for name in rgb_files()] + [["00000/img00000001.png", [2.0]], ["00000/img00000002.png", [1.0]]]
    data = ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(), pairs)), use_labels=True)
    assert data.get_label(1) == 2 and "1 images are labelled again" in data.notes[0]


BAD_LABELS = {
    "missing":      ([[1.0], [1.0], [1.0]], ["1 of 4 images", "00000/img00000003.png", "--cfg=stylegan2 --cond=0"]),
    "null":         ([[1.0], None, None, [1.0]], ["2 of 4 images", "00000/img00000001.png"]),
    "lengths":      ([[1.0, 2], [1.0, 2], [1.0], [1.0]], ["00000/img00000002.png has 1 numbers", "00000/img00000000.png 2"]),
    "mixed":        ([[1.0], 3, 3, 3], ["00000/img00000001.png is 3", "a list of 1", "one form"]),
    "nan":          ([[1.0, 2], [1.0, float("nan")], [1, 2], [1, 2]], ["00000/img00000001.png holds nan at position 1", "1 labels"]),
    "inf":          ([[1.0, 2], [1.0, 2], [float("inf"), 2], [float("-inf"), 2]], ["00000/img00000002.png holds inf at position 0", "2 labels"]),
    "beyond float": ([[1e39], [1], [1], [1]], ["00000/img00000000.png holds 1e+39"]),
    "endless":      ([[10 ** 400], [1], [1], [1]], ["00000/img00000000.png holds inf"]),
    "text":         ([["1.0"], ["2"], ["3"], ["4"]], ["00000/img00000000.png", '"1.0" in it', "flat list of numbers"]),
    "nested":       ([[[1, 0], [0, 1]]] * 4, ["00000/img00000000.png", "flat list"]),
    "truth":        ([True, False, True, True], ["00000/img00000000.png is true"]),
    "word":         (["cat", "dog", "cat", "cat"], ['is "cat"', "class number"]),
    "negative":     ([0, 1, -1, 2], ["00000/img00000002.png is -1", "class number"]),
    "fraction":     ([0, 1, 1.5, 2], ["00000/img00000002.png is 1.5", "class number"]),
    "class nan":    ([0, float("nan"), 1, 2], ["00000/img00000001.png is nan", "class number"]),
    "empty":        ([[], [], [], []], ["empty lists"]),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(tmp_path, case):
    labels, expected = BAD_LABELS[case]
    message = refusal(lambda: labelled(tmp_path, labels))
    assert all(part in message for part in [*expected, str(tmp_path / "a.zip"), "dataset.json"]), message


BAD_DOCUMENTS = {
    "syntax":       (b'{"labels": [[}', ["invalid JSON", "line 1 column"]),
    "not text":     (b"\xff\xfe\x00", ["UTF-8"]),
    "list":         (b"[1, 2]", ["holds a list of 2", '"labels"']),
    "no labels":    (b"{}", ['no "labels"', "--cfg=stylegan2 --cond=0"]),
    "null":         (b'{"labels": null}', ['no "labels"', "--cfg=stylegan2 --cond=0"]),
    "number":       (b'{"labels": 3}', ['"labels" holds 3']),
    "triple":       (b'{"labels": [["a.png", 1, 2]]}', ["entry 0", "a list of 3"]),
    "not a name":   (b'{"labels": [[7, [1]]]}', ["entry 0"]),
    "bare names":   (b'{"labels": ["a.png"]}', ["entry 0", '"a.png"']),
}


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
@pytest.mark.parametrize("form", ["a.zip", "folder"])
def test_bad_dataset_json(tmp_path, case, form):
    document, expected = BAD_DOCUMENTS[case]
    path = write(tmp_path / form, dict(rgb_files(), **{"dataset.json": document}))
    message = refusal(lambda: ImageFolderDataset(path, use_labels=True))
    assert all(part in message for part in [*expected, str(path), "dataset.json"]), message
    assert len(ImageFolderDataset(path)) == 4       # whoever needs no labels is not bothered


def test_no_dataset_json(tmp_path):
    path = write(tmp_path / "a.zip", rgb_files())
    message = refusal(lambda: ImageFolderDataset(path, use_labels=True))
    assert str(path) in message and "no dataset.json" in message and "--cond=1" in message


def test_dataset_json_one_folder_down_with_images_beside_that_folder(tmp_path):
    path = write(tmp_path / "a.zip", {f"ffhq/{name}": data for name, data in with_cameras(rgb_files()).items()} | {"a.png": encode(pixels(0, 8, 8, 3))})
    assert "ffhq/dataset.json" in refusal(lambda: ImageFolderDataset(path, use_labels=True))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["a.zip", "folder"])
def test_a_byte_order_mark_does_no_harm(tmp_path, form, encoding):
    document = json.dumps({"labels": [[name, [1.0]] for name in rgb_files()]}).encode(encoding)
    path = write(tmp_path / form, dict(rgb_files(), **{"dataset.json": document}))
    assert ImageFolderDataset(path, use_labels=True).label_dim == 1


DOCUMENTS = {
    "pairs": lambda pairs: {"labels": pairs}, "object": lambda pairs: {"labels": dict(pairs)}, "pairs alone": lambda pairs: pairs,
    "object alone": lambda pairs: dict(pairs), "dots": lambda pairs: {"labels": [[f"./{name}", label] for name, label in pairs]},
    "a folder around the names": lambda pairs: {"labels": [[f"ffhq/{name}", label] for name, label in pairs]},
    "no folder around the names": lambda pairs: {"labels": [[name.partition("/")[2], label] for name, label in pairs]},
    "names of another machine": lambda pairs: {"labels": [["D:\\ffhq\\" + name.replace("/", "\\"), label] for name, label in pairs]},
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_forms_of_dataset_json(tmp_path, case):
    pairs = [[name, camera_label(i)] for i, name in enumerate(sorted(rgb_files()))]
    path = write(tmp_path / "a.zip", dict(rgb_files(), **{"dataset.json": json.dumps(DOCUMENTS[case](pairs)).encode()}))
    data = ImageFolderDataset(path, use_labels=True)
    np.testing.assert_array_equal([data.get_label(i) for i in range(4)], np.float32([camera_label(i) for i in range(4)]))
    (tmp_path / "cameras.json").write_text(json.dumps(DOCUMENTS[case](pairs)), encoding="utf-8-sig")       # what trains is a camera file, too
    np.testing.assert_array_equal(load_camera_file(tmp_path / "cameras.json").to_label(), np.float32([camera_label(i) for i in range(4)]))


def test_scenes_may_be_called_as_labels_are(tmp_path):
    pairs = [[f".\\ffhq\\{name}", i // 2] for i, name in enumerate(sorted(rgb_files()))]
    path = write(tmp_path / "a.zip", dict(rgb_files(), **{"dataset.json": json.dumps({"scenes": pairs}).encode("utf-8-sig")}))
    assert read_scene_ids(str(path)).tolist() == [0, 0, 1, 1]


def test_scenes_that_do_not_meet_are_shown_from_both_sides(tmp_path):
    document = {"scenes": [["00000/IMG.png", 1]]}
    path = write(tmp_path / "a.zip", dict(rgb_files(), **{"dataset.json": json.dumps(document).encode()}))
    message = refusal(lambda: read_scene_ids(str(path)))
    assert "4 of 4 images" in message and "00000/img00000000.png" in message and "00000/IMG.png" in message


def test_names_that_do_not_meet_are_shown_from_both_sides(tmp_path):
    pairs = [[name.replace("img", "IMG"), [1.0]] for name in rgb_files()]
    message = refusal(lambda: ImageFolderDataset(write(tmp_path / "a.zip", with_labels(rgb_files(), pairs)), use_labels=True))
    assert "4 of 4 images" in message and "00000/img00000000.png" in message and "00000/IMG00000000.png" in message


# --- cameras

def test_good_cameras_pass_and_are_summarised(tmp_path):
    yaw = torch.tensor([-0.3, 0.1, 0.2, 0.4])
    labels = Camera.look_at(yaw, torch.zeros(4), radius=2.7, focal=4.2647).to_label().tolist()
    data = labelled(tmp_path, labels, xflip=True)
    assert data.check_cameras() == []
    stats = data.camera_stats()
    assert stats["radius"] == pytest.approx(2.7, abs=1e-3) and stats["focal"] == pytest.approx(4.2647, abs=1e-3)
    assert json.loads(json.dumps(stats)) == stats


def test_bad_cameras_are_named_with_data_set_and_image(tmp_path):
    labels = [camera_label(i) for i in range(4)]
    labels[2][0] *= 2
    data = labelled(tmp_path, labels)
    message = refusal(data.check_cameras)
    assert str(tmp_path / "a.zip") in message and "00000/img00000002.png" in message


def test_geometry_is_judged_unless_that_is_switched_off(tmp_path):
    angles = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    opengl = Camera.look_at(angles[0], angles[1], radius=2.7, focal=4.2647).to_label().numpy()
    opengl[:, [1, 2, 5, 6, 9, 10]] *= -1                    # y up, z backward
    data = labelled(tmp_path, opengl.tolist(), count=16)
    message = refusal(data.check_cameras)
    assert "OpenGL" in message and str(tmp_path / "a.zip") in message
    data.check_cameras(allow_geometry=True)


@pytest.mark.parametrize("labels, said", [([[1.0, 2]] * 4, "the labels have 2 numbers"), ([0, 1, 2, 3], "class numbers")])
def test_other_labels_are_no_cameras(tmp_path, labels, said):
    message = refusal(labelled(tmp_path, labels).check_cameras)
    assert said in message and "25 numbers" in message and str(tmp_path / "a.zip") in message
