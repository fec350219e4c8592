"""`modulate` by its definition, which is also its path for GPUs and without a compiler."""

from __future__ import annotations

import torch


def modulate(x: torch.Tensor, styles: torch.Tensor, appended: torch.Tensor | None) -> torch.Tensor:
    """cat([x, appended], 1) * styles."""
    if appended is not None:
        x = torch.cat([x, appended.expand(x.shape[0], -1, -1, -1)], dim=1)      # [N, C + E, H, W]
    return x * styles[:, :, None, None]
