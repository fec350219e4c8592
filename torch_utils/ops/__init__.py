"""Tensor operations with first and second gradients.

A folder is an op with native sources. Its files have the same names in every op:

- `__init__`: contract, check of the arguments, choice of the path.
- `reference`: the definition, and what its arguments mean.
- `plain`: PyTorch's operations, as fast as they get.
- `operator`: operators registered with torch.library, and their derivatives.
- `cuda`, `cpu`: from tensors to the native code beside them (`.cu`, `_cpu.cpp`). Operators that only CPUs have are
  registered in `cpu`.

`backends` holds what all share, first of all the choice of the path. A single file is a composition of PyTorch's
operations. Importing this package, or any op, builds nothing; see `torch_utils.custom_ops`.
"""
