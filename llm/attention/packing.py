"""Where each document begins among the tokens of all rows, found on the device.

Legend: B batch, T query positions, S key positions, P = B * S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm.attention.interface import PackedDocuments


def pack_documents(ids_BS: Tensor, query_length: int) -> PackedDocuments | None:
    """Documents behind each other, their queries being those among the last `query_length` positions of a row.

    The device is waited for once, for three numbers that the host needs to start any kernel.

    Returns:
        None where a document goes on after another has begun in its row.
    """
    (B, S), T, device = ids_BS.shape, query_length, ids_BS.device
    changes_BS = ids_BS[:, 1:] != ids_BS[:, :-1]
    begins_BS = torch.ones(B, S, dtype=torch.bool, device=device)
    begins_BS[:, 1:] = changes_BS
    document_P = begins_BS.flatten().cumsum(0) - 1
    position_P = torch.arange(B * S, device=device)
    begin_P = torch.where(begins_BS.flatten(), position_P, 0).cummax(0).values
    first_query_P = torch.maximum(begin_P, position_P // S * S + S - T)
    sorted_BS = ids_BS.sort(dim=1).values
    comes_back = (sorted_BS[:, 1:] != sorted_BS[:, :-1]).sum() != changes_BS.sum()
    numbers = (document_P[-1], (position_P - begin_P).max(), (position_P - first_query_P).max(), comes_back)
    last_document, longest_key, longest_query, broken = torch.stack(numbers).tolist()
    if broken:
        return None
    starts = torch.searchsorted(document_P, torch.arange(last_document + 2, device=device))
    query_starts = starts // S * T + (starts % S - (S - T)).clamp(min=0)
    return PackedDocuments(query_starts.int(), starts.int(), longest_query + 1, longest_key + 1)


def pack_rows(rows: int, query_length: int, key_length: int, device: torch.device) -> PackedDocuments:
    """The same where each row is one document; the device is not waited for."""
    row = torch.arange(rows + 1, dtype=torch.int32, device=device)
    return PackedDocuments(row * query_length, row * key_length, query_length, key_length)
