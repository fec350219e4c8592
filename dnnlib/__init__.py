"""Small utilities without any dependency on the networks."""

from dnnlib import util
from dnnlib.util import EasyDict, UserError, make_cache_dir_path

__all__ = ["EasyDict", "UserError", "make_cache_dir_path", "util"]
