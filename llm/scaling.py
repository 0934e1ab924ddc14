"""From one number, the depth of a model, to its shape and training: published scaling rules as pure functions.

Legend: N parameters without embedding and output projection, D training tokens, C = 6 N D operations.

Learning rate and batch are the Step Law (Li et al., arXiv:2503.04715): fitted to 3,700 runs of models as ours are,
RMSNorm and SwiGLU under AdamW, it gives them for any pair of N and D, and so also where somebody states the steps. The
law of DeepSeek LLM (arXiv:2401.02954, section 3.1) knows only C, and belongs to that project's schedule of two steps
down. N leaves the vocabulary out, which is not known before the dataset is opened. All of it is a place to begin a
search at, no end of one. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from llm.accounting import count_parameters
from llm.config import ModelConfig

LARGEST_DEPTH = 256
"""Twice the layers of Llama 3 405B (arXiv:2407.21783); 826 billion parameters at the derived width."""
SHAPE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)
"""Fields of the model that follow from its depth."""
_WIDTH_PER_LAYER = 64
_HEAD_SIZE = 128
_HIDDEN_MULTIPLE = 128
_TOKENS_PER_PARAMETER = 20
_HIGHEST_RATE = 3e-3
"""Below some 70 million parameters the law asks for more, and too much: after 150 steps of depth 2 the validation loss
was 5.06 nats at a rate of 7.8e-3, 4.28 at 3e-3 and 4.61 at 1e-3."""


def model_shape(depth: int, stated: Mapping[str, int | None]) -> dict[str, int | None]:
    """The shape of a decoder of some depth.

    It is 64 wide for each layer, in whole heads of size 128, a key/value head for each query head, as with the depth
    dial of nanochat (github.com/karpathy/nanochat, scripts/base_train.py). The feed-forward has 8/3 of the width, so
    that its three matrices hold as many parameters as two of four times the width (Shazeer, arXiv:2002.05202), in
    multiples of 128: depth 32 gives 5,504 at 2,048, and 64 Llama 2's 11,008 at 4,096.

    Args:
        depth: Decoder layers.
        stated: Fields that are settled, by name; null as in `ModelConfig`. The others adapt to them.

    Returns:
        All of SHAPE_FIELDS, those stated as they are.
    """
    width = stated.get("hidden_size") or _rounded_up(_WIDTH_PER_LAYER * depth, _HEAD_SIZE)
    heads, groups = stated.get("num_attention_heads"), stated.get("num_key_value_heads")
    if heads is None:
        heads = max(1, width // (stated.get("head_dim") or _HEAD_SIZE))
        heads = heads if groups is None else max(groups, heads // groups * groups)
    even = width % heads == 0 and width // heads % 2 == 0
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads if even else _HEAD_SIZE,
        "intermediate_size": _rounded_up(math.ceil(8 * width / 3), _HIDDEN_MULTIPLE),
        **stated,
    }


def scaling_parameters(model: ModelConfig) -> int:
    """N: the parameters of a model of known vocabulary without its embedding and output projection."""
    counted = count_parameters(model)
    return counted.total - counted.embedding - counted.output


def compute_optimal_tokens(parameters: int) -> int:
    """D = 20 N: training tokens that spend C operations best (Hoffmann et al., arXiv:2203.15556, table 3).

    Args:
        parameters: N. The paper counted embeddings too: where these are a large part, it would train for longer.
    """
    return _TOKENS_PER_PARAMETER * parameters


def batch_sequences(tokens: int, seq_len: int) -> int:
    """Sequences in one step: the Step Law's B = 0.58 D^0.571 tokens (arXiv:2503.04715), as the nearest power of two.

    The optimum is broad, as the paper shows, and a power of two divides among workers and micro-batches.

    Args:
        tokens: D.
        seq_len: Tokens in one sequence.

    Returns:
        At least 1.
    """
    return int(2 ** max(0, round(math.log2(0.58 * tokens**0.571 / seq_len))))


def peak_learning_rate(parameters: int, tokens: int) -> float:
    """AdamW's peak rate: the Step Law's 1.79 N^-0.713 D^0.307 (arXiv:2503.04715), at most 0.003, to three digits.

    Args:
        parameters: N.
        tokens: D.
    """
    return float(f"{min(_HIGHEST_RATE, 1.79 * parameters**-0.713 * tokens**0.307):.3g}")


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
