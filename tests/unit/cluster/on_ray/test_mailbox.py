"""The mailbox as an object: what the driver says again and again outlives a restart of the actor."""

from __future__ import annotations

from typing import Any

from cluster.on_ray.mailbox import Mailbox, Orders, Wishes

REPORT: dict[str, Any] = {"type": "group_failed", "number": "f1", "endings": []}


def test_messages_are_handed_over_once_and_in_order() -> None:
    box = Mailbox()
    box.post({"type": "a"})
    box.post({"type": "b"})
    assert box.exchange(Orders()) == [{"type": "a"}, {"type": "b"}]
    assert box.exchange(Orders()) == []


def test_wishes_are_those_of_the_last_exchange() -> None:
    box = Mailbox()
    assert box.wishes() == Wishes(stop=False, regroup="no")
    box.exchange(Orders(wishes=Wishes(stop=True, regroup="now"), wandb_key="secret"))
    assert box.wishes() == Wishes(stop=True, regroup="now")
    assert box.wandb_key() == "secret"
    box.exchange(Orders())
    assert box.wishes() == Wishes()


def test_verdict_comes_when_the_driver_has_decided() -> None:
    box = Mailbox()
    assert box.verdict(REPORT) is None
    assert box.verdict(REPORT) is None
    assert box.exchange(Orders()) == [REPORT]  # told once, asked twice
    box.exchange(Orders(verdicts={"f1": "retry"}))
    assert box.verdict(REPORT) == "retry"


def test_report_is_told_again_when_the_mailbox_was_restarted_before_the_verdict() -> None:
    restarted = Mailbox()
    assert restarted.verdict(REPORT) is None
    assert restarted.exchange(Orders()) == [REPORT]


def test_key_is_not_shown_when_orders_are_printed() -> None:
    assert "secret" not in repr(Orders(wandb_key="secret"))
