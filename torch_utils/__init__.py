"""Tensor operations and helpers between PyTorch and the networks. Importing this package does nothing."""
