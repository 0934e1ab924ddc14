"""Keys and values of the tokens already seen, so that a new token costs one position and not all of them.

Legend: B batch, T new positions, S positions held, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm.errors import ModelInputError
from llm.model_config import ModelConfig


class LayerCache:
    """Keys and values of one layer, held in memory that grows by blocks.

    Args:
        block_tokens: Room that is made beyond what is needed, so that not every token moves all that is held.
        window: Keys that a query of the layer sees, its own among them; older ones are let go, a block at a time.
            None keeps all.
    """

    def __init__(self, block_tokens: int, window: int | None = None) -> None:
        self.seen = 0
        """Positions that came, those let go among them."""
        self.length = 0
        """Positions held: the last of those seen."""
        self._block_tokens = block_tokens
        self._window = window
        self._k_BSGK: Tensor | None = None
        self._v_BSGK: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Positions that the memory taken has room for."""
        return 0 if self._k_BSGK is None else self._k_BSGK.shape[1]

    def keys_after(self, new_positions: int) -> int:
        """Positions that the next `append` of so many returns."""
        return self._kept() + new_positions

    def append(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions; return views of all keys and values held, Shape: (B, S, G, K) each."""
        T, kept = k_BTGK.shape[1], self._kept()
        end = kept + T
        if kept < self.length or end > self.capacity:
            self._k_BSGK = self._moved(self._k_BSGK, k_BTGK, kept)
            self._v_BSGK = self._moved(self._v_BSGK, v_BTGK, kept)
        assert self._k_BSGK is not None
        assert self._v_BSGK is not None
        self._k_BSGK[:, kept:end] = k_BTGK
        self._v_BSGK[:, kept:end] = v_BTGK
        self.length, self.seen = end, self.seen + T
        return self._k_BSGK[:, :end], self._v_BSGK[:, :end]

    def keep(self, rows: list[int], first: int) -> None:
        """Let go of all but some rows, and of the oldest of the positions seen; see `KeyValueCache.keep`."""
        if self._k_BSGK is None or self._v_BSGK is None:
            return
        start = max(first - (self.seen - self.length), 0)
        self._k_BSGK = self._k_BSGK[rows, start : self.length]
        self._v_BSGK = self._v_BSGK[rows, start : self.length]
        self.length, self.seen = self.length - start, self.seen - first

    def _kept(self) -> int:
        """Positions held that stay when new ones come: those that a later query sees, or all but for a whole block."""
        needed = self.length if self._window is None else min(self.length, self._window - 1)
        return needed if self.length - needed >= self._block_tokens else self.length

    def _moved(self, held_BSGK: Tensor | None, new_BTGK: Tensor, kept: int) -> Tensor:
        B, T, G, K = new_BTGK.shape
        moved_BSGK = new_BTGK.new_empty(B, kept + T + self._block_tokens, G, K)
        if held_BSGK is not None:
            moved_BSGK[:, :kept] = held_BSGK[:, self.length - kept : self.length]
        return moved_BSGK


class KeyValueCache:
    """Keys and values of every layer. Batch, dtype and device are those of the first tensors appended.

    Args:
        num_layers: Decoder blocks of the model.
        block_tokens: Positions for which memory is taken ahead.
        windows: Keys that a query of each layer sees, as in `LayerCache`; None keeps all in every layer.
    """

    def __init__(self, num_layers: int, block_tokens: int = 256, windows: Sequence[int | None] | None = None) -> None:
        each = [None] * num_layers if windows is None else windows
        self.layers = [LayerCache(block_tokens, window) for window in each]
        self._document_ids_BS: Tensor | None = None

    @classmethod
    def of(cls, config: ModelConfig, block_tokens: int = 256) -> KeyValueCache:
        """A cache that holds no more of a model's sliding layers than their windows need."""
        types = [config.layer_type(layer) for layer in range(config.num_hidden_layers)]
        windows = [config.sliding_window if kind == "sliding_attention" else None for kind in types]
        return cls(config.num_hidden_layers, block_tokens, windows)

    @property
    def length(self) -> int:
        """Positions seen, in tokens; the next has this number."""
        return self.layers[0].seen

    def keep(self, rows: Sequence[int], first: int) -> None:
        """Let go of rows that have ended, and of positions that no other row needs.

        Costs a copy of what stays, about as much as one token's attention reads.

        Args:
            rows: The rows that stay, which are then numbered from 0 in this order.
            first: So many positions are dropped at the beginning, padding in all rows that stay. Where it is not 0,
                later passes must be given `positions_BT`, since those of the cache count on from what is left.
        """
        stay = list(rows)
        for layer in self.layers:
            layer.keep(stay, first)
        if self._document_ids_BS is not None:
            self._document_ids_BS = self._document_ids_BS[stay, first:]

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
