"""The dtype in which a kernel of one's own choosing runs: torch's autocast knows scaled_dot_product_attention alone."""

from __future__ import annotations

import torch
from torch import Tensor


def of_one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As they are, or under autocast in its dtype: norms of queries and keys leave those wider than the values."""
    if not torch.is_autocast_enabled(q.device.type):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)
    return q.to(dtype), k.to(dtype), v.to(dtype)
