"""The generator of chaos, and the places in the product that it stops processes at."""

from __future__ import annotations

import importlib

import pytest
from chaos_injection import POINTS, owner_of
from disturbances import ACTS
from scenarios import CHECKPOINT_EVERY, DOZEN, KINDS, OTHERS, STEPS, scenarios

SEEDS = (0, 1, 2024)


@pytest.mark.parametrize("seed", SEEDS)
def test_scenarios_are_the_same_when_the_seed_is(seed: int) -> None:
    assert scenarios(seed, 60) == scenarios(seed, 60)
    assert scenarios(seed, 60)[:40] == scenarios(seed, 40)


def test_scenarios_differ_when_the_seed_does() -> None:
    assert scenarios(1, 40) != scenarios(2, 40)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_kind_appears_when_there_are_forty(seed: int) -> None:
    assert {each.kind for scenario in scenarios(seed, 40) for each in scenario.disturbances} == set(KINDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_pair_appears_when_there_are_as_many(seed: int) -> None:
    pairs = [*DOZEN, *OTHERS]
    assert len(set(pairs)) == len(pairs)
    played = scenarios(seed, len(pairs))
    assert {(each.kind, each.moment) for scenario in played for each in scenario.disturbances} >= set(pairs)


@pytest.mark.parametrize("seed", SEEDS)
def test_moments_come_in_order_and_within_the_run(seed: int) -> None:
    for scenario in scenarios(seed, 200):
        steps = [each.from_step for each in scenario.disturbances if each.from_step]
        assert steps == sorted(steps), scenario.id
        assert all(step <= STEPS - CHECKPOINT_EVERY for step in steps), scenario.id


def test_scenario_names_are_unique() -> None:
    names = [scenario.id for scenario in scenarios(7, 200)]
    assert len(set(names)) == len(names)


def test_every_kind_can_be_done() -> None:
    assert set(ACTS) == set(KINDS)


@pytest.mark.parametrize("name", POINTS)
def test_point_exists_in_the_product(name: str) -> None:
    point = POINTS[name]
    owner, attribute = owner_of(importlib.import_module(point.module), point.attribute)
    assert callable(getattr(owner, attribute))


def test_every_moment_has_a_point() -> None:
    assert {each.moment for scenario in scenarios(0, 100) for each in scenario.disturbances} <= set(POINTS)
