"""Tensor operations with first and second gradients.

A folder is an op with native sources: contract and dispatch in `__init__`, the definition in `reference.py`, the ordinary
PyTorch path that is fast on a CPU in `plain.py`, the registered CUDA op in `native.py` and its `.cu` beside. A single file is
a composition of other ops. Importing this package, or any op, builds nothing; see `torch_utils.custom_ops`.
"""
