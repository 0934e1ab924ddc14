"""The dtype in which a kernel of one's own choosing runs: torch's autocast knows scaled_dot_product_attention alone."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast makes of a kernel's inputs; None where there is no autocast."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def of_one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As they are, or under autocast in its dtype: norms of queries and keys leave those wider than the values."""
    dtype = autocast_dtype(q.device.type)
    return (q, k, v) if dtype is None else (q.to(dtype), k.to(dtype), v.to(dtype))
