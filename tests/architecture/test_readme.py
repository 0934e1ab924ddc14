"""Every command that the README shows is run by a test: here they are listed with the test that runs them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

# Command as it stands in the README -> the test that executes it, or a file in which it stands as it is.
_WALK = "tests/integration/test_readme_commands.py::test_own_text_becomes_a_model"
_STOPPED = "tests/integration/test_jobs.py::test_run_is_continued_when_its_driver_is_killed_and_not_when_it_is_stopped"
_STORE = "tests/integration/test_ray_object_store.py::test_record_is_equal_when_a_worker_is_killed_and_then_the_command"
CLAIMED: dict[str, str] = {
    "python -m pip install -e . && python -m launcher quickstart": ".ci/run",
    "python -m pip install -e '.[test]' && python -m pytest": ".ci/run",
    "longhaul data build mytext.yaml": _WALK,
    "longhaul pretrain myrun.yaml": _WALK,
    "longhaul evaluate runs/mytext": _WALK,
    'longhaul generate runs/mytext --prompt "The"': _WALK,
    "longhaul checkpoint list runs/mytext": _WALK,
    "longhaul checkpoint verify runs/mytext": _WALK,
    "longhaul checkpoint inspect runs/mytext": _WALK,
    "longhaul branch runs/mytext --from 50 annealed schedule.name=wsd train.max_steps=60": _WALK,
    "ray job submit --working-dir . -- python -m launcher pretrain smoke storage=/shared/runs": (
        "tests/integration/test_jobs.py::test_literal_ray_job_submit_trains_and_tracks_all"
    ),
    "export RAY_API_SERVER_ADDRESS=http://head:8265": (
        "tests/unit/launcher/test_environment.py::test_cluster_of_jobs_is_the_one_that_was_named"
    ),
    "longhaul submit data mytext.yaml output=/shared/datasets/mytext sources.0.path=/shared/notes": (
        "tests/integration/test_jobs.py::test_dataset_is_built_by_a_job"
    ),
    "longhaul jobs status mytext": _STOPPED,
    "longhaul submit pretrain myrun.yaml storage=/shared/runs data.dataset=/shared/datasets/mytext": _STOPPED,
    "longhaul jobs list": _STOPPED,
    "longhaul jobs logs mytext --follow": (
        "tests/integration/test_jobs.py::test_job_is_unharmed_when_the_terminal_that_follows_it_is_closed"
    ),
    "longhaul jobs stop mytext": _STOPPED,
    "longhaul pretrain myrun.yaml storage=s3://my-bucket/runs": _STORE,
    "longhaul report s3://my-bucket/runs/mytext --out mytext.html": _STORE,
    "longhaul checkpoint export runs/mytext --out mymodel": _WALK,
    "longhaul bench model smoke --steps 2": _WALK,
    "python -m tests.bench.step_overhead": "tests/integration/test_readme_commands.py::test_benchmark_prints_a_ratio",
}

_BLOCK = re.compile(r"^```(bash|console|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_in(markdown: str) -> list[str]:
    """Commands of a page's shell blocks: what follows `$ ` in `console`, all but comments elsewhere."""
    commands = []
    for language, block in _BLOCK.findall(markdown):
        joined = block.replace("\\\n", " ")
        lines = [line.strip() for line in joined.splitlines()]
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        commands += [re.sub(r"\s+", " ", line.split("  #")[0]).strip() for line in lines if line[:1] not in ("", "#")]
    return commands


def test_commands_in_reads_shell_blocks_only() -> None:
    page = "```bash\n# first\na b \\\n  c   # note\n```\n```python\nx\n```\n```console\n$ d\noutput\n```\n"
    assert commands_in(page) == ["a b c", "d"]


def test_every_command_of_the_readme_is_claimed_by_a_test() -> None:
    shown = set(commands_in(README.read_text(encoding="utf-8")))
    assert shown == set(CLAIMED)


def test_every_claim_names_something_that_exists() -> None:
    for command, where in CLAIMED.items():
        path, _, test = where.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert (f"def {test}(" if test else command) in text, where
