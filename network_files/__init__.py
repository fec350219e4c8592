"""Network files: our snapshots, .safetensors, and the files of StyleGAN2 (TensorFlow), StyleGAN2-ADA, StyleGAN3 and the
released ray conditioning. Nothing that a file embeds is run, unless the user trusts it.

    networks = network_files.read("network-snapshot-000100.pkl")       # dict(G, D, G_ema, ...)

This package is below `training`: it names classes of networks as strings, and `torch_utils.persistence` imports them.
"""

from network_files.any_format import KEYS, NETWORKS, read

__all__ = ["KEYS", "NETWORKS", "read"]
