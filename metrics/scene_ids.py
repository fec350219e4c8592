"""Which images of a data set show the same scene: "scenes" in dataset.json, [["IMAGE NAME", SCENE], ...], as the procedural data sets have it."""

from __future__ import annotations

import numpy as np

from dnnlib.util import parse_json
from training.dataset_labels import meet_names
from training.image_files import LABEL_FILE, DataError, open_files, plain_name
from training.image_scan import list_images


def read_scene_ids(path: str) -> np.ndarray | None:
    """For each image in the order of `ImageFolderDataset` (raw_idx) the number of its scene, int64 [N], counted from 0; None: the data name no scenes.

    Raises DataError where only some of the images have one.
    """
    files = open_files(path)
    try:
        if LABEL_FILE not in files.names:
            return None
        try:
            document = parse_json(files.read(LABEL_FILE))
        except ValueError:
            return None                  # what is wrong with the file, the data set says
        names, _ = list_images(files)
        where = files.locate(LABEL_FILE)
    finally:
        files.close()
    pairs = document.get("scenes") if isinstance(document, dict) else None
    if pairs is None:
        return None
    try:
        entries = pairs.items() if isinstance(pairs, dict) else pairs
        table = {plain_name(str(name)): str(scene) for name, scene in entries}
    except (TypeError, ValueError) as error:
        raise DataError(f'{where}: "scenes" is no list of ["IMAGE NAME", SCENE] pairs ({error})') from error
    table = meet_names(table, names)
    absent = [name for name in names if name not in table]
    if absent:
        extra = min(table.keys() - set(names), default=None)
        entry = "" if extra is None else f" (an entry without an image is that of {extra})"
        raise DataError(f'{where}: {len(absent)} of {len(names)} images have no entry in "scenes", the first is {absent[0]}{entry}; '
                        'name them all, or remove "scenes"')
    return np.unique([table[name] for name in names], return_inverse=True)[1].reshape(-1).astype(np.int64)


def shows_scenes_again(scene_ids: np.ndarray | None) -> bool:
    """Are there scenes with two views or more?"""
    return scene_ids is not None and len(scene_ids) > 0 and int(np.bincount(scene_ids).max()) >= 2
