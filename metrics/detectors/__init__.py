"""Detectors: TorchScript networks that turn images into the features that metrics compare.

Every detector takes images [N, 3, H, W] with values of 0 to 255, of any size, and returns float [N, D]. `kinds` is the
table of them, `files` finds, loads and checks their files, `features` sums up what they return.
"""

from metrics.detectors.dataset import data_hash
from metrics.detectors.files import Detector, check, find, load, prepare, refuse_other_files, require, sha256_of
from metrics.detectors.kinds import KINDS, Kind, kind_of

__all__ = ["Detector", "KINDS", "Kind", "check", "data_hash", "find", "kind_of", "load", "prepare",
           "refuse_other_files", "require", "sha256_of"]
