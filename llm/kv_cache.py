"""Keys and values of the tokens already seen, so that a new token costs one position and not all of them.

Legend: B batch, T new positions, S positions held, G key/value heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm.errors import ModelInputError


class LayerCache:
    """Keys and values of one layer, held in memory that grows by whole blocks."""

    def __init__(self, block_tokens: int) -> None:
        self.length = 0
        self._block_tokens = block_tokens
        self._k_BSGK: Tensor | None = None
        self._v_BSGK: Tensor | None = None

    def append(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions; return views of all keys and values held, Shape: (B, S, G, K) each."""
        end = self.length + k_BTGK.shape[1]
        self._k_BSGK = self._with_room(self._k_BSGK, k_BTGK, end)
        self._v_BSGK = self._with_room(self._v_BSGK, v_BTGK, end)
        self._k_BSGK[:, self.length : end] = k_BTGK
        self._v_BSGK[:, self.length : end] = v_BTGK
        self.length = end
        return self._k_BSGK[:, :end], self._v_BSGK[:, :end]

    def _with_room(self, held_BSGK: Tensor | None, new_BTGK: Tensor, end: int) -> Tensor:
        if held_BSGK is not None and end <= held_BSGK.shape[1]:
            return held_BSGK
        capacity = -(-end // self._block_tokens) * self._block_tokens
        B, _, G, K = new_BTGK.shape
        grown_BSGK = torch.empty(B, capacity, G, K, dtype=new_BTGK.dtype, device=new_BTGK.device)
        if held_BSGK is not None:
            grown_BSGK[:, : self.length] = held_BSGK[:, : self.length]
        return grown_BSGK


class KeyValueCache:
    """Keys and values of every layer. Batch, dtype and device are those of the first tensors appended.

    Args:
        num_layers: Decoder blocks of the model.
        block_tokens: Positions by which the memory grows; the first block is sized to the prompt.
    """

    def __init__(self, num_layers: int, block_tokens: int = 256) -> None:
        self.layers = [LayerCache(block_tokens) for _ in range(num_layers)]
        self._document_ids_BS: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions held, in tokens."""
        return self.layers[0].length

    def append_documents(self, document_ids_BT: Tensor | None, length: int) -> Tensor | None:
        """Add the documents of new tokens, before their keys; returns those of all positions. Shape: (B, S).

        Raises:
            ModelInputError: Some tokens of a row have documents and others have none.
        """
        if self.length and (document_ids_BT is None) != (self._document_ids_BS is None):
            raise ModelInputError(
                f"the cache holds {self.length} tokens {'without' if self._document_ids_BS is None else 'with'} "
                f"document_ids and {length} more came {'without' if document_ids_BT is None else 'with'}: which tokens "
                "see each other is then unknown. Pass document_ids for all tokens or for none."
            )
        if document_ids_BT is None:
            return None
        held_BS = self._document_ids_BS
        self._document_ids_BS = document_ids_BT if held_BS is None else torch.cat((held_BS, document_ids_BT), dim=1)
        return self._document_ids_BS
