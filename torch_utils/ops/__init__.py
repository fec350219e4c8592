"""Tensor operations with first and second gradients.

A folder is an op with native sources: contract and dispatch in `__init__`, the definition in `reference.py`, the ordinary
PyTorch path in `plain.py`, the registered CUDA op in `native.py` and its `.cu` beside. What is compiled for CPUs is `*_cpu.cpp`, called
from `native_cpu.py`; where its derivatives are not the CUDA op's, `operator_cpu.py` registers them. A single file is a composition of
other ops. Importing this package, or any op, builds nothing; see `torch_utils.custom_ops`.
"""
