"""What happens to runs under chaos: scenarios as a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill_worker",
    "kill_driver",
    "lose_node",
    "kill_raylet",
    "lose_cluster",
    "kill_controller",
    "kill_mailbox",
    "sigterm",
    "sigint",
    "stop_job",
    "kill_job_driver",
    "fill_disk",
    "fill_disk_for_long",
    "wandb_unreachable",
    "wandb_lost",
    "delete_checkpoint",
    "flip_file",
    "truncate_file",
    "remove_file",
    "tear_manifest",
    "tear_metrics",
    "tear_events",
    "second_driver",
    "sleeping_driver",
    "displaced_driver",
    "clock_forward",
    "clock_back",
    "s3_errors",
    "s3_slow",
    "s3_down",
    "s3_lost_answer",
]
Moment = Literal["step", "save", "written", "publish", "published", "retention", "load", "restart", "lease", "end"]
"""Before a step is computed; before a rank's file is written and after; before the manifest is and after; before an old
checkpoint's files are deleted, its manifest gone; before the first tensor is read; before a worker builds its model;
after a driver took the lease; before a driver writes that the run is finished."""
Pair = tuple[Kind, Moment]
Tracking = Literal["disabled", "offline", "auto", "online"]

KINDS: tuple[Kind, ...] = get_args(Kind)
STEPS = 20
CHECKPOINT_EVERY = 4

DOZEN: tuple[Pair, ...] = (
    ("kill_worker", "save"),
    ("kill_driver", "publish"),
    ("kill_raylet", "step"),
    ("sigterm", "step"),
    ("stop_job", "step"),
    ("fill_disk", "save"),
    ("flip_file", "step"),
    ("displaced_driver", "save"),
    ("clock_back", "step"),
    ("kill_worker", "load"),
    ("kill_driver", "retention"),
    ("wandb_unreachable", "step"),
)
"""The first twelve of every seed: those that differ most."""
OTHERS: tuple[Pair, ...] = (
    ("lose_node", "step"),
    ("lose_cluster", "step"),
    ("kill_controller", "step"),
    ("kill_mailbox", "step"),
    ("sigint", "save"),
    ("kill_job_driver", "step"),
    ("fill_disk_for_long", "save"),
    ("wandb_lost", "step"),
    ("delete_checkpoint", "step"),
    ("truncate_file", "step"),
    ("remove_file", "step"),
    ("tear_manifest", "step"),
    ("tear_metrics", "step"),
    ("tear_events", "step"),
    ("second_driver", "step"),
    ("sleeping_driver", "save"),
    ("clock_forward", "save"),
    ("kill_worker", "step"),
    ("kill_worker", "written"),
    ("kill_worker", "publish"),
    ("kill_worker", "published"),
    ("kill_worker", "retention"),
    ("kill_worker", "restart"),
    ("kill_driver", "step"),
    ("kill_driver", "save"),
    ("kill_driver", "published"),
    ("kill_driver", "load"),
    ("kill_driver", "lease"),
    ("kill_driver", "end"),
    ("lose_node", "save"),
    ("lose_node", "load"),
    ("kill_raylet", "publish"),
    ("lose_cluster", "save"),
    ("kill_controller", "save"),
    ("kill_controller", "load"),
    ("kill_mailbox", "publish"),
    ("sigterm", "save"),
    ("sigterm", "load"),
    ("sigint", "step"),
    ("stop_job", "save"),
    ("kill_job_driver", "save"),
    ("flip_file", "published"),
    ("second_driver", "save"),
    ("displaced_driver", "step"),
    ("clock_back", "publish"),
    ("clock_forward", "step"),
    ("s3_errors", "save"),
    ("s3_slow", "save"),
    ("s3_errors", "load"),
    ("s3_down", "step"),
    ("s3_lost_answer", "publish"),
)
COMPANIONS: tuple[Pair, ...] = (
    ("kill_worker", "step"),
    ("kill_worker", "save"),
    ("kill_worker", "publish"),
    ("kill_driver", "step"),
    ("kill_driver", "save"),
    ("kill_driver", "published"),
    ("sigterm", "step"),
    ("tear_metrics", "step"),
    ("flip_file", "step"),
)
"""What may follow something else: quick, and with more than one checkpoint to go back to."""
OF_PROCESSES: tuple[Pair, ...] = tuple(pair for pair in COMPANIONS if pair[0] not in ("tear_metrics", "flip_file"))
"""Those of them that touch no file."""

_LATER: frozenset[Moment] = frozenset({"load", "restart", "lease"})
"""Moments of a run that goes on, so that something must have interrupted it."""
_ALONE: frozenset[Moment] = frozenset({"retention", "end"})
_SLOW: frozenset[Kind] = frozenset(
    {"lose_node", "lose_cluster", "kill_raylet", "sleeping_driver", "displaced_driver", "fill_disk_for_long"}
)
_OF_FILES: frozenset[Kind] = frozenset(
    {"delete_checkpoint", "flip_file", "truncate_file", "remove_file", "tear_manifest"}
)
"""Those that damage the newest checkpoint, which must not be the only one."""
_OF_JOBS: frozenset[Kind] = frozenset({"stop_job", "kill_job_driver"})
"""Those that need the driver on the cluster, where a test kills it as a job and not as its own child."""
_OF_CLOCKS: frozenset[Kind] = frozenset({"clock_forward", "clock_back"})
_OF_STORES: frozenset[Kind] = frozenset({"s3_errors", "s3_slow", "s3_down", "s3_lost_answer"})
"""Those of runs whose storage is an object store."""
_FIRST_WITH_A_CHECKPOINT = 6
"""The checkpoint of step 4 is published with the loss of step 5."""
_FIRST_WITH_TWO_CHECKPOINTS = 13
_COMPANION_CHANCE = 0.35


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """One thing that happens to a run."""

    kind: Kind
    moment: Moment
    from_step: int
    """It happens at the first such moment from this step on."""
    delay_ms: int
    """How long after the process that stood at the moment went on; 0 while it stands there."""
    pick: int
    """Chooses among several workers, nodes, files or sizes."""

    @property
    def damages(self) -> int:
        """Checkpoints that it costs besides the work since the last one."""
        return {"fill_disk": 1, "fill_disk_for_long": 2}.get(self.kind, int(self.kind in _OF_FILES))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One run and all that happens to it."""

    number: int
    disturbances: tuple[Disturbance, ...]
    tracking: Tracking
    as_job: bool
    on_store: bool
    """Whether its storage is an object store."""

    @property
    def id(self) -> str:
        """Its name: number, then kinds and moments."""
        return "-".join((f"{self.number:02d}", *(f"{each.kind}@{each.moment}" for each in self.disturbances)))

    @property
    def lost_steps_allowed(self) -> int:
        """Steps that one interruption may cost: an interval, the save in flight, and checkpoints that were damaged."""
        return CHECKPOINT_EVERY * (2 + sum(each.damages for each in self.disturbances))


def scenarios(seed: int, rounds: int) -> list[Scenario]:
    """The scenarios of a seed; a longer list begins with the shorter one.

    Every kind is among the first 40, and every pair of kind and moment among the first 63.
    """
    pairs = _pairs(seed)
    return [_scenario(random.Random(f"{seed}/{number}"), number, next(pairs)) for number in range(rounds)]


def _pairs(seed: int) -> Iterator[Pair]:
    order = random.Random(seed)
    yield from DOZEN
    seen = {kind for kind, _ in DOZEN}
    first = [pair for pair in OTHERS if pair[0] not in seen and not seen.add(pair[0])]  # type: ignore[func-returns-value]
    rest = [pair for pair in OTHERS if pair not in first]
    for group in (first, rest):
        yield from order.sample(group, len(group))
    while True:
        everything = [*DOZEN, *OTHERS]
        yield from order.sample(everything, len(everything))


def _scenario(draw: random.Random, number: int, pair: Pair) -> Scenario:
    kind, moment = pair
    disturbances = []
    if moment in _LATER:
        opening: Kind = "kill_driver" if moment == "lease" else draw.choice(("kill_driver", "kill_worker"))
        disturbances.append(_disturbance(draw, (opening, "step"), draw.randint(_FIRST_WITH_A_CHECKPOINT, 10)))
        disturbances.append(_disturbance(draw, pair, 0))
    else:
        disturbances.append(_disturbance(draw, pair, _first_step(draw, pair)))
    alone = moment in _LATER or moment in _ALONE or kind in _SLOW or kind in _OF_FILES
    if kind in _OF_CLOCKS or (not alone and (kind in _OF_STORES or draw.random() < _COMPANION_CHANCE)):
        among = OF_PROCESSES if kind in _OF_STORES else COMPANIONS
        others = [each for each in among if kind not in _OF_JOBS or each[0] == "kill_worker"]
        disturbances.append(_disturbance(draw, draw.choice(others), draw.randint(14, 16)))
    tracking: Tracking = "offline" if draw.random() < 0.3 else "disabled"
    tracking = {"wandb_unreachable": "auto", "wandb_lost": "online"}.get(kind, tracking)  # type: ignore[assignment]
    return Scenario(
        number=number,
        disturbances=tuple(disturbances),
        tracking=tracking,
        as_job=kind in _OF_JOBS,
        on_store=kind in _OF_STORES,
    )


def _first_step(draw: random.Random, pair: Pair) -> int:
    kind, moment = pair
    if kind in _OF_FILES:
        return _FIRST_WITH_TWO_CHECKPOINTS
    if moment in _ALONE:
        return 0
    return draw.randint(5, 12)


def _disturbance(draw: random.Random, pair: Pair, from_step: int) -> Disturbance:
    kind, moment = pair
    if kind in _OF_FILES:
        from_step = max(from_step, _FIRST_WITH_TWO_CHECKPOINTS)
    sudden = kind.startswith(("kill_", "lose_", "sig")) and moment not in _ALONE and moment != "lease"
    delay_ms = draw.choice((0, 0, 5, 20, 60)) if sudden else 0
    return Disturbance(kind=kind, moment=moment, from_step=from_step, delay_ms=delay_ms, pick=draw.randrange(1 << 16))
