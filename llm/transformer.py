"""The decoder Transformer: Llama's architecture and parameter names, with the loss inside the forward pass.

Legend: B batch, T sequence, D model, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.accounting import vocabulary_size
from llm.activation_checkpointing import ActivationCheckpointing, run_layer
from llm.attention import Backend, Visibility, attention_backend
from llm.config import ModelConfig
from llm.errors import ModelInputError
from llm.kv_cache import KeyValueCache
from llm.layers import Block, Embedding, RMSNorm, rotary_tables
from llm.loss import LossSums, linear_cross_entropy_sums


class Decoder(nn.Module):
    """Embedding, blocks and final norm: tokens in, hidden states out. Heads of every task stand on this."""

    def __init__(
        self, config: ModelConfig, attention: Backend, activation_checkpointing: ActivationCheckpointing = "off"
    ) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.activation_checkpointing = activation_checkpointing
        self.embed_tokens = Embedding(vocabulary_size(config), config.hidden_size)
        self.layers = nn.ModuleList(Block(config, attention.attend) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens_BT: int64 token ids; with a cache, the tokens that follow those it holds.
            document_ids_BT: Equal integers for tokens of one document, which then see only each other.
            cache: Keys and values of earlier tokens; the new ones are added to it.

        Returns:
            Shape: (B, T, D), in the dtype of the parameters.

        Raises:
            ModelInputError: Both document ids and a cache were given.
        """
        if document_ids_BT is not None and cache is not None:
            raise ModelInputError(
                "the decoder got document_ids together with a cache, and a cache does not know the documents "
                "of the tokens it holds. Generate from one document a row, without document_ids."
            )
        start, length = (0 if cache is None else cache.length), tokens_BT.shape[1]
        x_BTD: Tensor = self.embed_tokens(tokens_BT)
        mask = self.attention.prepare(
            Visibility(length, start + length, document_ids_BT, None, x_BTD.dtype, x_BTD.device)
        )
        rotary = rotary_tables(start, length, self.config.head_size, self.config.rope_theta, x_BTD.device)
        for index, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            mode = "off" if layer_cache is not None else self.activation_checkpointing  # a cache is written once
            x_BTD = run_layer(mode, block, x_BTD, rotary, mask, layer_cache)
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD


class OutputHead(nn.Module):
    """Output projection with its own weight, which is used inside its own forward pass and nowhere else."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(
        self, hidden_BTD: Tensor, targets_BT: Tensor | None = None, loss_weights_BT: Tensor | None = None
    ) -> Tensor | LossSums:
        """Logits, or with targets the loss; see `Transformer.forward`."""
        return _project(hidden_BTD, self.weight, targets_BT, loss_weights_BT)


class Transformer(nn.Module):
    """A language model whose parameters are named exactly as in Hugging Face's LlamaForCausalLM.

    `model.embed_tokens.weight`, `model.layers.N.…`, `model.norm.weight`, and `lm_head.weight` unless
    `tie_word_embeddings` makes the embedding the output projection too. Parameters are left uninitialised.

    Args:
        config: Shape of the model, with vocab_size known.
        attention: Name of a backend, already resolved (see `resolve_attention`).
        activation_checkpointing: What a training step keeps of each layer; changes memory and speed alone.

    Raises:
        ModelConfigError: vocab_size is still null.
        AttentionBackendError: No backend has that name.
    """

    def __init__(
        self, config: ModelConfig, attention: str, activation_checkpointing: ActivationCheckpointing = "off"
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, attention_backend(attention), activation_checkpointing)
        self.lm_head = None if config.tie_word_embeddings else OutputHead(config.hidden_size, vocabulary_size(config))

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor | LossSums:
        """Loss where there are targets, logits where there are none.

        The loss belongs in here and not beside the model: sharded parameters exist only during the forward
        pass of the module that owns them.

        Args:
            tokens_BT: int64 token ids.
            targets_BT: int64 ids of the tokens to predict.
            loss_weights_BT: Weight of each target; None means 1 for all.
            document_ids_BT: Equal integers for tokens of one document, which then see only each other.
            cache: Keys and values of earlier tokens, for generation.

        Returns:
            `LossSums` in fp32, or logits of shape (B, T, V) in the dtype of the parameters.

        Raises:
            ModelInputError: Arguments that do not go together.
        """
        if targets_BT is None and loss_weights_BT is not None:
            raise ModelInputError("the model got loss_weights without targets: there is no loss to weigh. Pass both.")
        hidden_BTD: Tensor = self.model(tokens_BT, document_ids_BT, cache)
        if self.lm_head is None:
            return _project(hidden_BTD, self.model.embed_tokens.weight, targets_BT, loss_weights_BT)
        output: Tensor | LossSums = self.lm_head(hidden_BTD, targets_BT, loss_weights_BT)
        return output

    def logits(
        self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Scores of the next token at every position, through `forward` and its hooks. Shape: (B, T, V)."""
        logits_BTV: Tensor = self(tokens_BT, document_ids_BT=document_ids_BT, cache=cache)
        return logits_BTV


def _project(
    hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor | None, loss_weights_BT: Tensor | None
) -> Tensor | LossSums:
    if targets_BT is None:
        return F.linear(hidden_BTD, weight_VD)
    if loss_weights_BT is None:
        loss_weights_BT = torch.ones_like(targets_BT, dtype=torch.float32)
    return linear_cross_entropy_sums(hidden_BTD, weight_VD, targets_BT, loss_weights_BT)
