"""The decoder Transformer, with the loss inside the forward pass.

Legend: B batch, T sequence, S keys, D model, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.accounting import vocabulary_size
from llm.activation_checkpointing import ActivationCheckpointing, run_layer
from llm.attention import AttentionNeeds, Backend, Visibility, attention_backend
from llm.config import ModelConfig
from llm.dropout import Dropout, drop, layer_keys
from llm.errors import ModelInputError
from llm.experts import RouterSums
from llm.heads import TaskHead, task_head
from llm.kv_cache import KeyValueCache
from llm.layers import Block, Embedding, Surroundings, make_norm
from llm.loss import EXPERT_LOAD, ROUTER_BALANCE, ROUTER_Z, LossRule, LossSums, linear_cross_entropy_sums
from llm.model_config import LayerType
from llm.rotary import rotary_tables


class Decoder(nn.Module):
    """Embedding, blocks and final norm: tokens in, hidden states out. Heads of every task stand on this."""

    def __init__(
        self, config: ModelConfig, backend: Backend, activation_checkpointing: ActivationCheckpointing = "off"
    ) -> None:
        super().__init__()
        self.config = config
        self.prepare_mask = backend.prepare
        self.activation_checkpointing = activation_checkpointing
        self.embed_tokens = Embedding(vocabulary_size(config), config.hidden_size)
        self.embed_positions: Embedding | None = None
        if config.position_embedding == "learned":
            assert config.max_position_embeddings is not None
            self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, backend) for _ in range(config.num_hidden_layers))
        self.norm = make_norm(config)

    def forward(
        self,
        tokens_BT: Tensor,
        document_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions_BT: Tensor | None = None,
        dropout_keys_B: Tensor | None = None,
        token_weights_BT: Tensor | None = None,
    ) -> tuple[Tensor, list[RouterSums]]:
        """Hidden states after the final norm.

        Args:
            tokens_BT: int64 token ids; with a cache, the tokens that follow those it holds.
            document_ids_BT: Equal integers for tokens of one document, which then see only each other.
            cache: Keys and values of earlier tokens, with their documents; the new ones are added to it.
            positions_BT: int64 position of each token; None counts on from the start of the row.
            dropout_keys_B: int64 key of each row for dropout; None drops nothing.
            token_weights_BT: What each token counts for the routers' losses; None means 1.

        Returns:
            Shape: (B, T, D), in the dtype of the parameters; and the sums of each layer's router, where there are any.

        Raises:
            ModelInputError: A sequence is longer than the model allows, or a cache has tokens with documents and
                without.
        """
        start, length = (0 if cache is None else cache.length), tokens_BT.shape[1]
        limit = self.config.max_position_embeddings
        if limit is not None and start + length > limit:
            raise ModelInputError(
                f"a sequence has {start + length} tokens, and model.max_position_embeddings is {limit}: the model "
                "knows no position beyond. Give it a shorter one."
            )
        if positions_BT is None:
            positions_BT = torch.arange(start, start + length, device=tokens_BT.device)[None]
        documents_BS = document_ids_BT if cache is None else cache.append_documents(document_ids_BT, length)
        x_BTD: Tensor = self.embed_tokens(tokens_BT)
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(positions_BT)
        if self.config.embedding_multiplier != 1.0:
            x_BTD = x_BTD * self.config.embedding_multiplier
        if self.config.embedding_dropout and dropout_keys_B is not None:
            x_BTD = drop(x_BTD, Dropout(dropout_keys_B, 0, self.config.embedding_dropout))
        visible = Visibility(length, start + length, documents_BS, None, x_BTD.dtype, x_BTD.device)
        a_layer_of = {self.config.layer_type(index): index for index in range(len(self.layers))}
        around = {
            kind: self._surroundings(kind, positions_BT, visible if cache is None else _held(cache, index, visible))
            for kind, index in a_layer_of.items()
        }
        routed: list[RouterSums] = []
        for index, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            inputs = around[self.config.layer_type(index)]._replace(token_weights_BT=token_weights_BT)
            if dropout_keys_B is not None:
                inputs = inputs._replace(dropout_keys_B=layer_keys(dropout_keys_B, index))
            mode = "off" if layer_cache is not None else self.activation_checkpointing  # a cache is written once
            x_BTD, sums = run_layer(mode, block, x_BTD, inputs, layer_cache)
            if sums is not None:
                routed.append(sums)
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD, routed

    def _surroundings(self, kind: LayerType, positions_BT: Tensor, visible: Visibility) -> Surroundings:
        config = self.config
        theta, scaling = config.rope_theta, config.rope_scaling
        if kind == "sliding_attention":
            visible = visible._replace(window=config.sliding_window)
            if config.rope_local_base_freq is not None:
                theta, scaling = config.rope_local_base_freq, None
        rotary = None
        if config.position_embedding == "rope":
            rotary = rotary_tables(positions_BT, config.head_size, theta, scaling)
        return Surroundings(rotary, self.prepare_mask(visible))


def _held(cache: KeyValueCache, layer: int, visible: Visibility) -> Visibility:
    """What is visible of the keys that the cache of a layer holds: the last ones, where its attention slides."""
    keys, documents_BS = cache.layers[layer].keys_after(visible.query_length), visible.document_ids_BS
    return visible._replace(key_length=keys, document_ids_BS=None if documents_BS is None else documents_BS[:, -keys:])


def attention_needs(
    config: ModelConfig, device: str, *, documents: bool, training: bool, dtype: torch.dtype
) -> AttentionNeeds:
    """What the attention of a model asks of a backend.

    Args:
        config: Shape of the model.
        device: As torch names it, `cpu` or `cuda:0`.
        documents: Whether documents are kept apart.
        training: Whether gradients are wanted.
        dtype: Of the products.
    """
    return AttentionNeeds(
        device_type=device.split(":")[0],
        softcap=config.attn_logit_softcapping is not None,
        window=config.sliding_window is not None,
        documents=documents,
        dropout=training and config.attention_dropout > 0,
        head_size=config.head_size,
        training=training,
        dtype=dtype,
    )


class OutputHead(nn.Module):
    """Output projection with its own weight, which is used inside its own forward pass and nowhere else."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(
        self,
        hidden_BTD: Tensor,
        rule: LossRule,
        targets_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
    ) -> Tensor | LossSums:
        """Logits, or with targets the loss; see `Transformer.forward`."""
        return _project(hidden_BTD, self.weight, rule, targets_BT, loss_weights_BT)


class Transformer(nn.Module):
    """A decoder language model, or its trunk under the head of another task, its parameters left uninitialised.

    `llm.accounting.parameter_shapes` lists them.

    Args:
        config: Shape of the model, with vocab_size known.
        attention: Name of a backend, already resolved (see `resolve_attention`).
        activation_checkpointing: What a training step keeps of each layer; changes memory and speed alone.
        z_loss: Coefficient of the squared log partition function, which is added to what is minimised.
        label_smoothing: Of a head with classes; see `llm.heads.TaskHead`.

    Raises:
        ModelConfigError: vocab_size is still null.
        AttentionBackendError: No backend has that name.
    """

    def __init__(
        self,
        config: ModelConfig,
        attention: str,
        activation_checkpointing: ActivationCheckpointing = "off",
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.rule = LossRule(1 / config.logits_scaling, config.final_logit_softcapping, z_loss)
        self.model = Decoder(config, attention_backend(attention), activation_checkpointing)
        self.score: TaskHead | None = None
        self.lm_head: OutputHead | None = None
        if config.head is not None:
            self.score = task_head(config.head, config.hidden_size, label_smoothing)
        elif not config.tie_word_embeddings:
            self.lm_head = OutputHead(config.hidden_size, vocabulary_size(config))

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions_BT: Tensor | None = None,
        dropout_keys_B: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor | LossSums:
        """Loss where there are targets, logits where there are none.

        The loss belongs in here and not beside the model: sharded parameters exist only during the forward
        pass of the module that owns them.

        Args:
            tokens_BT: int64 token ids.
            targets_BT: int64 ids of the tokens to predict; under another head what that head takes.
            loss_weights_BT: Weight of each target; None means 1 for all.
            document_ids_BT: Equal integers for tokens of one document, which then see only each other.
            cache: Keys and values of earlier tokens, for generation.
            positions_BT: int64 position of each token; None counts on from the start of the row.
            dropout_keys_B: int64 key of each row for dropout; None drops nothing.
            last_only: Keep the last position alone: the scores of a long prompt's every token are more memory than
                the model.

        Returns:
            `LossSums` in fp32, or logits of shape (B, T or 1, V) in the dtype of the parameters; of another head its
            outputs, of shape (B, T or 1, C) in fp32.

        Raises:
            ModelInputError: Arguments that do not go together.
        """
        if targets_BT is None and loss_weights_BT is not None:
            raise ModelInputError("the model got loss_weights without targets: there is no loss to weigh. Pass both.")
        if targets_BT is not None and last_only:
            raise ModelInputError(
                "the model got targets and last_only: the loss is over all positions, and logits alone can be of the "
                "last. Leave one of them out."
            )
        hidden_BTD, routed = self.model(
            tokens_BT, document_ids_BT, cache, positions_BT, dropout_keys_B, token_weights_BT=loss_weights_BT
        )
        if last_only:
            hidden_BTD = hidden_BTD[:, -1:]
        output: Tensor | LossSums
        if self.score is not None:
            output = self.score(hidden_BTD, targets_BT, loss_weights_BT)
        elif self.lm_head is None:
            output = _project(hidden_BTD, self.model.embed_tokens.weight, self.rule, targets_BT, loss_weights_BT)
        else:
            output = self.lm_head(hidden_BTD, self.rule, targets_BT, loss_weights_BT)
        if routed and self.score is None and isinstance(output, LossSums):
            return self._with_router_losses(output, routed)
        return output

    def _with_router_losses(self, sums: LossSums, routed: list[RouterSums]) -> LossSums:
        """Add what evens the experts out, each the mean over layers, to what is minimised, and report it."""
        balance_sum = torch.stack([layer.balance_sum for layer in routed]).mean()
        z_sum = torch.stack([layer.z_sum for layer in routed]).mean()
        penalty = self.config.router_aux_loss_coef * balance_sum + self.config.router_z_loss_coef * z_sum
        terms = {
            ROUTER_BALANCE: balance_sum.detach(),
            ROUTER_Z: z_sum.detach(),
            EXPERT_LOAD: torch.stack([layer.load_E for layer in routed]),
        }
        return sums._replace(objective_sum=sums.objective_sum + penalty, terms={**sums.terms, **terms})

    def logits(
        self,
        tokens_BT: Tensor,
        document_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions_BT: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Scores of the next token at every position or at the last, through `forward` and its hooks.

        Shape: (B, T or 1, V).
        """
        logits_BTV: Tensor = self(
            tokens_BT, document_ids_BT=document_ids_BT, cache=cache, positions_BT=positions_BT, last_only=last_only
        )
        return logits_BTV


def _project(
    hidden_BTD: Tensor, weight_VD: Tensor, rule: LossRule, targets_BT: Tensor | None, loss_weights_BT: Tensor | None
) -> Tensor | LossSums:
    if targets_BT is None:
        return rule.logits(F.linear(hidden_BTD, weight_VD))
    if loss_weights_BT is None:
        loss_weights_BT = torch.ones_like(targets_BT, dtype=torch.float32)
    return linear_cross_entropy_sums(hidden_BTD, weight_VD, targets_BT, loss_weights_BT, rule)
