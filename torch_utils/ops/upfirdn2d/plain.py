from torch_utils.ops.upfirdn2d.reference import upfirdn2d  # noqa: F401
