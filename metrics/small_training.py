"""How the small networks are trained: images in memory, a held-out part, augmentation that leaves the pose alone, one loop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import dnnlib
from dnnlib.util import UserError
from metrics.scene_ids import read_scene_ids
from metrics.small_network import SmallNetwork, resize_by_area
from training.labels import is_camera_width

MIN_RESOLUTION, MAX_RESOLUTION = 8, 256
HELD_OUT = 0.1                           # part of the scenes that training does not see
MAX_HELD_OUT = 4000                      # images; more would not make the error more certain, only slower
"""Placeholder"""
