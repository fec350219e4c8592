"""What all generators share: a mapping network turns latents and labels into ws, a synthesis network makes images of
them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_utils import misc, persistence
from training.networks.layers import FullyConnectedLayer, computing_dtype, normalize_2nd_moment


@persistence.persistent_class
class MappingNetwork(nn.Module):
    """Latent z and label c -> intermediate latents ws (Karras et al. 2019, section 2). Can truncate them to their mean.
    """

    def __init__(self,
        z_dim:              int,                        # 0: no latent, the network maps labels only.
        c_dim:              int,                        # 0: no label.
        w_dim:              int,
        num_ws:             int | None,                 # Copies of w to return; None: one [N, w_dim], and keep no mean.
        num_layers:         int             = 8,
        embed_features:     int | None      = None,     # Size of the label's embedding; None: w_dim.
        layer_features:     int | None      = None,     # Size of the hidden layers; None: w_dim.
        activation:         str             = "lrelu",
        lr_multiplier:      float           = 0.01,
        w_avg_beta:         float | None    = 0.998,    # Decay of the mean of w; None: keep no mean.
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        embed_features = 0 if c_dim == 0 else embed_features or w_dim
        hidden = layer_features or w_dim

        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        widths = [z_dim + embed_features] + [hidden] * (num_layers - 1) + [w_dim]
        for i in range(num_layers):
            layer = FullyConnectedLayer(widths[i], widths[i + 1], activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{i}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim], dtype=torch.float32))

    @misc.own_precision
    def forward(self, z: Tensor | None, c: Tensor | None, truncation_psi: float = 1,
                truncation_cutoff: int | None = None, update_emas: bool = False) -> Tensor:
        """z: [N, z_dim], c: [N, c_dim]; one z serves many labels, and one label many z.

        Returns ws [N, num_ws, w_dim], of which the first `truncation_cutoff` (None: all) are pulled to the mean.
        """
        inputs = []
        dtype = computing_dtype(next(self.parameters(), z))
        if self.z_dim > 0:
            misc.assert_shape(z, [None, self.z_dim])
            inputs.append(normalize_2nd_moment(z.to(dtype)))
        if self.c_dim > 0:
            misc.assert_shape(c, [None, self.c_dim])
            inputs.append(normalize_2nd_moment(self.embed(c.to(dtype))))
        if len(inputs) == 2 and len(z) != len(c):
            inputs = [x.expand(misc.common_batch(len(z), len(c), "labels"), -1) for x in inputs]
        w = torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]
        for i in range(self.num_layers):
            w = getattr(self, f"fc{i}")(w)                                  # [N, w_dim]

        if update_emas and self.w_avg_beta is not None:
            self.w_avg.lerp_(w.detach().mean(dim=0).to(self.w_avg.dtype), 1 - self.w_avg_beta)
        if self.num_ws is None:
            return w
        ws = w.unsqueeze(1).repeat(1, self.num_ws, 1)                       # [N, num_ws, w_dim]
        if truncation_psi != 1:
            assert self.w_avg_beta is not None, "truncation needs the mean of w, which this network does not keep"
            cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
            truncated = self.w_avg.to(ws.dtype).lerp(ws[:, :cutoff], truncation_psi)
            ws = torch.cat([truncated, ws[:, cutoff:]], dim=1)
        return ws

    def extra_repr(self) -> str:
        return f"z_dim={self.z_dim}, c_dim={self.c_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}"


class BaseGenerator(nn.Module):
    """Latent z and label c -> image. Subclasses set the classes of the two networks. The label goes to the mapping
    network.
    """

    mapping_class: type[nn.Module]
    synthesis_class: type[nn.Module]

    def __init__(self,
        z_dim:              int,
        c_dim:              int,                        # 0: no label.
        w_dim:              int,
        img_resolution:     int,
        img_channels:       int,
        mapping_kwargs:     dict | None = None,         # For the mapping network.
        **synthesis_kwargs: Any,                        # For the synthesis network.
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = self.synthesis_class(w_dim=w_dim, img_resolution=img_resolution, img_channels=img_channels,
                                              **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = self.mapping_class(z_dim=z_dim, c_dim=self._mapped_label_dim(), w_dim=w_dim, num_ws=self.num_ws,
                                          **(mapping_kwargs or {}))

    def _mapped_label_dim(self) -> int:
        """How much of the label the mapping network sees."""
        return self.c_dim

    def forward(self, z: Tensor, c: Tensor | None, truncation_psi: float = 1, truncation_cutoff: int | None = None,
                update_emas: bool = False, **synthesis_kwargs: Any) -> Tensor:
        """z: [N, z_dim], c: [N, c_dim]; one z serves many labels, and one label many z. Returns images [N, C, H, W]."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff,
                          update_emas=update_emas)
        return self.synthesis(ws, c, update_emas=update_emas, **synthesis_kwargs)
