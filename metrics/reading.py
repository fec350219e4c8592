"""Images of a data set, read ahead by a few threads while the last ones are worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

BATCH = 64                               # images per chunk, unless memory says otherwise
THREADS = 4


def read_chunks(dataset: Any, chunks: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    """chunks: numbers of items, [B] each. Yields their images in turn, uint8 [B, C, H, W]."""
    def load(items: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([dataset[int(item)][0] for item in items]))

    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future] = deque()
        for items in chunks:
            ahead.append(pool.submit(load, items))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
