"""The procedural renderer: geometry against definitions and brute force, cameras against camera_utils, files against what was asked."""

import dataclasses
import errno
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import camera_utils
from dataset_preprocessing.procedural import KINDS, render, render_rays, sample_angles, sample_labels, sample_scene
from dataset_preprocessing.procedural import archive as archive_module
from dataset_preprocessing.procedural import render as render_function
from dataset_preprocessing.procedural import renderer, scenes
from dataset_preprocessing.procedural.intersection import image_boxes, trace
from dnnlib.util import UserError

sys.modules.pop("dataset_preprocessing.procedural.render", None)
import importlib  # noqa: E402

cli = importlib.import_module("dataset_preprocessing.procedural.render")
assert render is render_function
both_kinds = pytest.mark.parametrize("kind", list(KINDS))
ROOT = Path(__file__).resolve().parents[1]
