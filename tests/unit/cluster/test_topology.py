"""What a layout says of another one, which an older version may have written."""

from __future__ import annotations

from dataclasses import replace

from cluster.topology import Layout

LAYOUT = Layout(
    world_size=2,
    zero_stage=1,
    micro_batch_size=4,
    precision="fp32",
    threads=1,
    device="cpu",
    attention="sdpa",
    compiled=False,
    versions={"torch": "2.13.0"},
)


def without_compiled(layout: Layout) -> dict[str, object]:
    return {key: value for key, value in layout.as_dict().items() if key != "compiled"}


def test_layout_names_what_differs_with_both_values() -> None:
    other = replace(LAYOUT, world_size=3, compiled=True)
    assert LAYOUT.differences(other.as_dict()) == {"world_size": [3, 2], "compiled": [True, False]}
    assert LAYOUT.differences(LAYOUT.as_dict()) == {}


def test_layout_takes_an_older_one_to_be_uncompiled_when_it_does_not_say() -> None:
    assert LAYOUT.differences(without_compiled(LAYOUT)) == {}
    assert replace(LAYOUT, compiled=True).differences(without_compiled(LAYOUT)) == {"compiled": [False, True]}
