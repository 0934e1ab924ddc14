"""What names resolve to, and what is refused, with the whole message."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.attention import (
    BACKENDS,
    AttentionNeeds,
    ResolvedAttention,
    ScoreRule,
    Visibility,
    attention_backend,
    flash_kernels,
    resolve_attention,
    support,
)
from llm.dropout import Dropout
from llm.errors import AttentionBackendError

CPU = AttentionNeeds(device_type="cpu", head_size=64, training=True)
KERNELS_CAP_NOTHING = "scores are capped, and its kernel has no cap. Use one of eager, flex, or auto."
KERNELS_DROP_NOTHING = (
    "model.attention_dropout is above 0, and its kernel has no masks that stay the same on any number of workers. "
    "Use eager or auto, or set the dropout to 0."
)


def needs(device_type: str = "cpu", **changes: Any) -> AttentionNeeds:
    dtype = torch.float32 if device_type == "cpu" else torch.bfloat16
    return AttentionNeeds(**{"device_type": device_type, "head_size": 64, "training": True, "dtype": dtype} | changes)


def refused(name: str, asked: AttentionNeeds) -> str:
    with pytest.raises(AttentionBackendError) as error:
        resolve_attention(name, asked)
    return str(error.value)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 9.0, as far as the choice asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.parametrize(
    ("asked", "name", "reason"),
    [
        (needs(), "sdpa", "auto: torch's fused kernels run on every device and need no extra package"),
        (needs(documents=True), "varlen", "auto: work shrinks with the documents and windows"),
        (needs(window=True), "varlen", "auto: work shrinks with the documents and windows"),
        (
            needs(documents=True, dropout=True),
            "eager",
            "auto: attention dropout, for which no fused kernel serves",
        ),
        (needs(softcap=True), "eager", "auto: capped scores, for which no fused kernel serves here"),
        (needs("cuda"), "sdpa", "auto: torch's fused kernels run on every device and need no extra package"),
        (needs("cuda", documents=True), "varlen", "auto: work shrinks with the documents and windows"),
        (
            needs("cuda", documents=True, dtype=torch.float32),
            "sdpa",
            "auto: not varlen, because the queries are float32, and its kernel for GPUs reads float16 and bfloat16",
        ),
        (needs("cuda", softcap=True), "flex", "auto: capped scores, in a kernel compiled for them"),
        (
            needs("cuda", softcap=True, training=False),
            "eager",
            "auto: capped scores, for which no fused kernel serves here",
        ),
    ],
)
@pytest.mark.usefixtures("hopper")
def test_auto_becomes_the_backend_that_serves_with_a_reason(asked: AttentionNeeds, name: str, reason: str) -> None:
    assert resolve_attention("auto", asked) == ResolvedAttention(name, reason)


@pytest.mark.parametrize("name", ["eager", "sdpa", "varlen"])
def test_name_resolves_to_itself_when_it_serves(name: str) -> None:
    assert resolve_attention(name, needs(documents=True)) == ResolvedAttention(name, "asked for by name")
    assert attention_backend(name).name == name


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("sdpa", needs(softcap=True), KERNELS_CAP_NOTHING),
        ("varlen", needs(softcap=True), KERNELS_CAP_NOTHING),
        ("sdpa", needs(dropout=True), KERNELS_DROP_NOTHING),
        ("varlen", needs(dropout=True), KERNELS_DROP_NOTHING),
        ("flex", needs("cuda", dropout=True), KERNELS_DROP_NOTHING),
        (
            "flex",
            needs(),
            "on the CPU torch compiles FlexAttention without a backward pass, and uncompiled it holds all scores. "
            "Use eager, varlen or auto.",
        ),
        (
            "flex",
            needs("cuda", head_size=8),
            "the head size is 8, and its kernel takes 16 or more. Use sdpa or auto, or a larger model.head_dim.",
        ),
        ("flash3", needs(), "its kernel is for GPUs, and the device is cpu. Use varlen or auto."),
        (
            "varlen",
            needs("cuda", head_size=36),
            "the head size is 36, and its kernel takes multiples of 8 up to 256. "
            "Use sdpa or auto, or another model.head_dim.",
        ),
        (
            "varlen",
            needs("cuda", dtype=torch.float32),
            "the queries are float32, and its kernel for GPUs reads float16 and bfloat16. "
            "Use train.precision bf16, or sdpa or auto.",
        ),
        (
            "flash4",
            needs("cuda"),
            "torch runs FA4 from the module flash_attn.cute.interface, which is not installed. "
            "Install FlashAttention's package of it on every node, or use varlen.",
        ),
    ],
)
@pytest.mark.usefixtures("hopper")
def test_name_is_refused_when_it_cannot_serve(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: AttentionNeeds, why: str
) -> None:
    monkeypatch.setattr(flash_kernels, "find_spec", lambda module: None)
    assert refused(name, asked) == f"model.attention is {name!r}, which cannot be used: {why}"


@pytest.mark.parametrize(
    ("name", "capability", "why"),
    [
        ("varlen", (7, 5), "this GPU's compute capability is 7.5, and its kernel is written for 8.x and above."),
        ("flash3", (10, 0), "this GPU's compute capability is 10.0, and its kernel is written for 9.x."),
        ("flash4", (12, 0), "this GPU's compute capability is 12.0, and its kernel is written for 9.x and 10.x."),
    ],
)
@pytest.mark.usefixtures("hopper")
def test_name_is_refused_when_the_gpu_is_not_what_its_kernel_is_for(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert refused(name, needs("cuda")) == f"model.attention is {name!r}, which cannot be used: {why} Use sdpa or auto."


def test_varlen_is_refused_on_gpus_when_torch_packs_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value, *, window_size: None)
    assert refused("varlen", needs("cuda")) == (
        f"model.attention is 'varlen', which cannot be used: varlen_attn of torch {torch.__version__} has no "
        "enable_gqa and window_size. Install a torch that has them, or use sdpa or auto."
    )


def test_newer_kernel_is_refused_when_torch_does_not_register_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.nn.attention.list_flash_attention_impls")
    assert support.missing("flash3") == (
        f"torch {torch.__version__} does not register FA3. Install one that does, or use varlen."
    )


def test_newer_kernel_is_refused_when_its_package_is_missing_as_the_model_is_made() -> None:
    with pytest.raises(AttentionBackendError, match=r"^model\.attention is 'flash3', .*which is not installed\."):
        attention_backend("flash3")


def test_kernel_is_refused_when_another_is_active_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.current_flash_attention_impl", lambda: "FA3")
    flash_kernels.require_active("flash3")
    with pytest.raises(AttentionBackendError) as error:
        flash_kernels.require_active("varlen")
    assert str(error.value) == (
        "attention backend 'varlen' is about to run, and torch has FA3 active in the place of FlashAttention 2: "
        "a process has one. Give all models of a process one backend."
    )


def test_kernels_are_named_as_torch_registers_them() -> None:
    known = torch.nn.attention.list_flash_attention_impls()
    assert {kernel.torch_name for kernel in flash_kernels.KERNELS.values()} <= set(known)


@pytest.mark.parametrize(
    ("name", "rule", "why"),
    [
        ("sdpa", ScoreRule(1.0, 30.0, None), KERNELS_CAP_NOTHING),
        ("varlen", ScoreRule(1.0, 30.0, None), KERNELS_CAP_NOTHING),
        ("varlen", ScoreRule(1.0, None, Dropout(torch.tensor([0]), 0, 0.1)), KERNELS_DROP_NOTHING),
        ("flex", ScoreRule(1.0, None, Dropout(torch.tensor([0]), 0, 0.1)), KERNELS_DROP_NOTHING),
    ],
)
def test_rule_is_refused_when_the_kernel_would_leave_it_out(name: str, rule: ScoreRule, why: str) -> None:
    backend, q = attention_backend(name), torch.zeros(1, 3, 1, 16)
    mask = backend.prepare(Visibility(3, 3, None, None, torch.float32, torch.device("cpu")))
    with pytest.raises(AttentionBackendError) as error:
        backend.attend(q, q, q, mask, rule)
    assert str(error.value) == f"model.attention is {name!r}, which cannot be used: {why}"


def test_name_is_refused_when_unknown() -> None:
    assert refused("flash", CPU) == (
        "model.attention is 'flash', and no backend has that name. "
        "Use one of: auto, eager, flash3, flash4, flex, sdpa, varlen."
    )


def test_auto_is_refused_when_not_resolved_before() -> None:
    with pytest.raises(AttentionBackendError) as error:
        attention_backend("auto")
    assert str(error.value) == (
        "attention backend 'auto' reached the model: it must be resolved once and logged before. "
        "Pass resolve_attention('auto', needs).name."
    )


def test_configuration_knows_every_backend() -> None:
    from typing import get_args, get_type_hints

    from llm.config import ModelConfig

    assert set(get_args(get_type_hints(ModelConfig)["attention"])) == {"auto", *BACKENDS}
