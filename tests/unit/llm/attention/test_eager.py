"""The reference against a loop over single numbers."""

from __future__ import annotations

import math

import pytest
import torch

from llm.attention import ScoreRule, Visibility, attention_backend
from llm.dropout import Dropout

TOLERANCE = 1e-5  # fp32 against fp64 numbers, sums of 5 terms


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_eager_equals_a_loop_over_numbers_when_heads_are_grouped(softcap: float | None, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, heads, 8, generator=generator) for heads in (4, 2, 2))
    ids = [[0, 0, 0, 0, 0], [3, 3, 3, 1, 1]]
    expected = torch.zeros_like(q)
    for b, t, h in ((b, t, h) for b in range(2) for t in range(5) for h in range(4)):
        seen = [s for s in range(t + 1) if ids[b][s] == ids[b][t] and (window is None or t - s < window)]
        scores = [0.3 * float(q[b, t, h] @ k[b, s, h // 2]) for s in seen]
        if softcap is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        total = sum(math.exp(score) for score in scores)
        for s, score in zip(seen, scores, strict=True):
            expected[b, t, h] += v[b, s, h // 2] * (math.exp(score) / total)
    eager = attention_backend("eager")
    mask = eager.prepare(Visibility(5, 5, torch.tensor(ids), window, torch.float32, torch.device("cpu")))
    actual = eager.attend(q, k, v, mask, ScoreRule(scale=0.3, softcap=softcap))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_weights_are_dropped_and_the_rest_scaled_when_there_is_dropout() -> None:
    backend = attention_backend("eager")
    q = torch.zeros(1, 400, 1, 8)  # equal scores: query t weighs t + 1 keys alike
    v = torch.ones(1, 400, 1, 8)
    mask = backend.prepare(Visibility(400, 400, None, None, torch.float32, torch.device("cpu")))
    dropout = Dropout(torch.tensor([7]), 0, 0.25)
    out = backend.attend(q, q, v, mask, ScoreRule(scale=1.0, softcap=None, dropout=dropout))
    kept_weight = out[0, 0, 0, 0].item()
    assert kept_weight in (0.0, pytest.approx(1 / 0.75))
    # the mean of 400 kept weights: its standard deviation is sqrt(0.25 / 0.75 / 400) = 0.03
    assert out[0, -1, 0, 0].item() == pytest.approx(1.0, abs=0.12)
    assert out[0, -1, 0, 0].item() != 1.0
