"""The Resume law under seeded chaos: whatever happens to a run, it ends as if nothing had.

    python -m pytest -m chaos --chaos-rounds 40 --chaos-seed 2024 [--chaos-only NUMBER]

`tests/chaos/scenarios.py` says what happens when; the processes are made to stand at the moment by
`tests/chaos/injection`, so that a scenario hits it on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos_cluster import Stage
from chaos_run import ChaosRun
from disturbances import play
from scenarios import Scenario
from verdict import judge
from wandb_server import WandbServer

from cluster.storage.operations import StoragePath

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]

_NOBODY = "http://127.0.0.1:9"
_KEY = "0123456789abcdef0123456789abcdef01234567"
_LOG_BYTES = 8_000


@pytest.fixture
def run(scenario: Scenario, stage: Stage, dataset: Path, tmp_path: Path, request: pytest.FixtureRequest) -> ChaosRun:
    """The scenario's run, not begun, on a cluster that is whole."""
    fills = any(each.kind.startswith("fill_disk") for each in scenario.disturbances)
    wanted = "small_disk" if fills else "bucket" if scenario.on_store else "tmp_path"
    storage: StoragePath = request.getfixturevalue(wanted)
    made = ChaosRun(
        stage,
        f"chaos-{scenario.number:02d}",
        storage,
        dataset,
        tmp_path / "log",
        tracking=scenario.tracking,
        as_job=scenario.as_job,
    )
    if scenario.tracking == "online":
        made.wandb_server = WandbServer()
    if scenario.tracking in ("auto", "online"):
        server = made.wandb_server.url if made.wandb_server else _NOBODY
        made.environment = {"WANDB_BASE_URL": server, "WANDB_API_KEY": _KEY}
    stage.gates.reset()
    stage.cluster.mend()
    return made


def test_run_is_as_if_undisturbed_when(
    scenario: Scenario,
    undisturbed: list[dict[str, Any]],
    run: ChaosRun,
    say: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    begun = time.monotonic()
    try:
        play(scenario, run.stage, run)
        outcome = judge(run, scenario, undisturbed)
    except BaseException as error:
        say(f"{scenario.id}: FAILED after {time.monotonic() - begun:.0f} s: {type(error).__name__}: {error}")
        print(_account(scenario, run, request.config.getoption("--chaos-seed")))
        raise
    finally:
        run.stage.gates.reset()
        run.close()
    say(f"{scenario.id}: passed in {time.monotonic() - begun:.0f} s: {outcome}")


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the terminal at once, whatever is captured."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")

    def write(text: str) -> None:
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.write_line(text)

    return write


def _account(scenario: Scenario, run: ChaosRun, seed: int) -> str:
    """All that it takes to understand a failure, and to see it again."""
    lines = [
        f"seed {seed}, scenario {scenario.id}",
        *(f"  {each}" for each in scenario.disturbances),
        f"again: python -m pytest -m chaos --chaos-seed {seed} --chaos-rounds {scenario.number + 1} "
        f"--chaos-only {scenario.number}",
        "events:",
        *(f"  {event}" for event in run.events),
        "end of the log:",
        run.log.read_text(errors="replace")[-_LOG_BYTES:] if run.log.exists() else "(none)",
    ]
    return "\n".join(lines)
