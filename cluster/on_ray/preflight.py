"""What a cluster must have before the first worker starts: room, one storage, the data, the same software on all nodes.

Every node of a joined cluster is asked by a task that runs there, so that the answer is the node's own.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.config import ResourcesConfig, RunConfig
from cluster.engines.zero_options import check_zero
from cluster.errors import ClusterError, ResourcesError, RunRefusedError, StorageError
from cluster.on_ray.evaluator import require_room_for_task
from cluster.on_ray.ray_cluster import Cluster, Node, live_nodes, room_for_workers
from cluster.storage.check import account_of
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, remove_files, storage_path, write_atomically
from cluster.versions import library_versions
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError, DatasetError

_ANSWER_SECONDS = 120.0
_COMPARED = ("python", "torch", "deepspeed", "ray", "numpy")
"""Software that must be the same on every node, so that every rank computes the same."""


@dataclass(frozen=True, kw_only=True)
class NodeAnswer:
    """What a node found."""

    versions: Mapping[str, str]
    storage_problem: str | None = None
    dataset_problems: Mapping[str, str] = field(default_factory=dict)
    """By path."""
    weights_problems: Mapping[str, str] = field(default_factory=dict)
    """By place."""


def check_cluster(
    config: RunConfig,
    cluster: Cluster,
    fingerprints: Mapping[str, str],
    *,
    weights: Mapping[str, str],
    device_so_far: str | None,
    say: Callable[[str], None],
) -> int:
    """Check all that can be checked before workers start.

    Args:
        config: The run; paths absolute.
        cluster: The connection.
        fingerprints: Of the run's datasets, by path, as the driver sees them.
        weights: Fingerprint of the weights that the run begins with, by place; empty where it has begun.
        device_so_far: `cpu` or `cuda`, what the run's newest checkpoint was computed on; None for a new run.
        say: Told what is resolved and what takes a while.

    Returns:
        GPUs per worker, 0 or 1.

    Raises:
        ResourcesError: The run asks for more than there is, or nodes run different software.
        RunRefusedError: A ZeRO option does not fit the devices or the number of workers, or a node does not see the
            weights that the run begins with.
        StorageError: A node cannot write the storage, or sees another one.
        DatasetError: A node lacks a dataset or has another one.
        llm.errors.AttentionBackendError: The workers compute on CPUs, and `model.attention` names what cannot.
    """
    nodes = live_nodes()
    gpus_per_worker = resolve_gpus(config.resources, nodes, device_so_far, say)
    for workers in range(config.resources.min_workers, config.resources.max_workers + 1):
        check_zero(config.zero, device="cuda" if gpus_per_worker else "cpu", workers=workers)
    if not gpus_per_worker:
        _check_attention_on_cpus(config)
    require_room_for_task(config, nodes, gpus_per_worker)
    if cluster.attached:
        say(f"asking {'the node' if len(nodes) == 1 else f'each of {len(nodes)} nodes'} for storage, data and software")
        _check_nodes(storage_path(config.storage), fingerprints, nodes, weights)
    return gpus_per_worker


def resolve_gpus(
    wanted: ResourcesConfig, nodes: list[Node], device_so_far: str | None, say: Callable[[str], None]
) -> int:
    """Resolve `gpus_per_worker` and make sure that the workers fit.

    Raises:
        ResourcesError: They do not, or `auto` would move a run from GPUs to CPUs.
    """
    gpus = sum(node.gpus for node in nodes)
    per_worker: int
    if wanted.gpus_per_worker == "auto" and not gpus and device_so_far == "cuda":
        raise ResourcesError(
            f"the run computed on GPUs so far, and none of the {len(nodes)} live nodes has one. Add nodes with GPUs, "
            "or say resources.gpus_per_worker=0 to go on on CPUs."
        )
    if wanted.gpus_per_worker == "auto":
        per_worker = 1 if gpus else 0
        say(
            f"resources.gpus_per_worker auto is {per_worker}: the cluster has "
            + ("no GPU" if not gpus else "1 GPU" if gpus == 1 else f"{gpus} GPUs")
        )
    else:
        per_worker = wanted.gpus_per_worker
    room = room_for_workers(nodes, cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=per_worker)
    if room < wanted.min_workers:
        raise ResourcesError(
            f"the run asks for {wanted.min_workers} workers with {wanted.cpus_per_worker} CPU cores and {per_worker} "
            f"GPUs each, and the cluster has room for {room} (live nodes: {len(nodes)}, CPU cores: "
            f"{sum(node.cpus for node in nodes)}, GPUs: {gpus}): it would wait for ever. "
            "Lower resources.workers or cpus_per_worker, set gpus_per_worker=0 to train on CPUs, or add nodes."
        )
    return per_worker


def _check_attention_on_cpus(config: RunConfig) -> None:
    """What a GPU can serve is known to its worker alone; of CPUs it is known here, before one starts."""
    from cluster.resolution import attention_of  # a node's answer, in this file too, should not wait for torch
    from cluster.topology import resolve_precision

    attention_of(config, "cpu", resolve_precision(config.train.precision, "cpu")[0])


def examine_node(
    storage: StoragePath, fingerprints: Mapping[str, str], node_id: str, *, weights: Mapping[str, str]
) -> str | None:
    """Check a node that joined a running cluster as those that were there at the start.

    Returns:
        Why it cannot take workers of the run; None where it can.
    """
    from ray.exceptions import RayError

    try:
        _check_nodes(storage, fingerprints, [node for node in live_nodes() if node.id == node_id], weights)
    except (ResourcesError, RunRefusedError, StorageError, DataError, OSError, RayError) as error:
        return str(error)
    return None


def _check_nodes(
    storage: StoragePath, fingerprints: Mapping[str, str], nodes: list[Node], weights: Mapping[str, str]
) -> None:
    """Probe the storage from every node, and compare software, datasets and initial weights with the driver's."""
    mark = f".probe-{secrets.token_hex(4)}"
    try:
        write_atomically(storage / mark, b"written by the driver")
        answers = _ask(nodes, storage, mark, fingerprints, weights)
        for node, answer in zip(nodes, answers, strict=True):
            _judge(node, answer, storage, mark)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before says more
            remove_files([storage / mark, *(storage / f"{mark}-{node.id}" for node in nodes)])


def _ask(
    nodes: list[Node],
    storage: StoragePath,
    mark: str,
    fingerprints: Mapping[str, str],
    weights: Mapping[str, str],
) -> list[NodeAnswer]:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: Node) -> Any:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(answer_for_node)
        return task.remote(str(storage), mark, node.id, dict(fingerprints), dict(weights))

    answers = []
    for node, reference in [(node, ask(node)) for node in nodes]:
        try:
            answers.append(ray.get(reference, timeout=_ANSWER_SECONDS))
        except GetTimeoutError as error:
            raise ResourcesError(
                f"{node.description} did not answer within {_ANSWER_SECONDS:.0f} s: its raylet is alive, but starts no "
                "process. Look into its Ray logs, or take the node out of the cluster."
            ) from error
        except RayError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
            raise ResourcesError(
                f"{node.description} cannot run this code: {last}. Every node needs the dependencies of Longhaul, and "
                "the code itself by installation or with the job's working directory (`longhaul submit` brings it)."
            ) from error
    return answers


def answer_for_node(
    storage: str, mark: str, node_id: str, fingerprints: dict[str, str], weights: dict[str, str]
) -> NodeAnswer:
    """Runs on the node: write and read the storage, open the datasets and the initial weights, name the software."""
    place, storage_problem = storage_path(storage), None
    try:
        (place / mark).read_bytes()
        write_atomically(place / f"{mark}-{node_id}", b"written by the node")
    except FileNotFoundError:
        storage_problem = "does not see what the driver wrote there: it is another storage on that node"
    except OSError as error:
        storage_problem = f"cannot use it: {account_of(place, error)}"
    problems = {}
    for path, fingerprint in fingerprints.items():
        try:
            found = Dataset.open(path).fingerprint
        except (DataError, OSError) as error:
            problems[path] = str(error)
        else:
            if found != fingerprint:
                problems[path] = f"it has the fingerprint {found} there, and {fingerprint} for the driver"
    return NodeAnswer(
        versions=library_versions(),
        storage_problem=storage_problem,
        dataset_problems=problems,
        weights_problems=_weights_problems(weights),
    )


def _weights_problems(weights: Mapping[str, str]) -> dict[str, str]:
    if not weights:
        return {}  # to look at them takes torch, which takes seconds to import
    from cluster.initial_weights import find_initial_weights
    from llm.errors import ModelError

    problems = {}
    for place, fingerprint in weights.items():
        try:
            found = find_initial_weights(place).fingerprint
        except (ClusterError, ModelError, OSError) as error:
            problems[place] = str(error)
        else:
            if found != fingerprint:
                problems[place] = f"they have the fingerprint {found} there, and {fingerprint} for the driver."
    return problems


def _judge(node: Node, answer: NodeAnswer, storage: StoragePath, mark: str) -> None:
    if answer.storage_problem is None and not (storage / f"{mark}-{node.id}").exists():
        answer = NodeAnswer(
            versions=answer.versions,
            storage_problem="writes there what the driver does not see: it is another storage on that node",
            dataset_problems=answer.dataset_problems,
            weights_problems=answer.weights_problems,
        )
    if answer.storage_problem is not None:
        rule = (
            "Every node needs its own credentials for the store and the same endpoint: a role, or AWS_... variables in "
            "the environment that its Ray was started with (or in the job's `env_vars`)."
            if isinstance(storage, ObjectPath)
            else "Every node must see one and the same directory (NFS, Lustre, a mounted bucket): mount it there, or "
            "set `storage` to one that is shared."
        )
        raise StorageError(f"storage {storage}: {node.description} {answer.storage_problem}. {rule}")
    for path, problem in answer.dataset_problems.items():
        raise DatasetError(
            f"dataset {path}: {node.description} cannot use it: {problem} Datasets must lie where every node sees "
            "them: mount the directory there, or set `data.dataset` to one that is shared."
        )
    for place, problem in answer.weights_problems.items():
        raise RunRefusedError(
            f"initialize_from, {place}: {node.description} cannot begin with these weights: {problem} They must lie "
            "where every node sees them: mount the directory there, or name another one."
        )
    here = library_versions()
    different = [
        f"{name} {answer.versions.get(name)} there, {here.get(name)} for the driver"
        for name in _COMPARED
        if answer.versions.get(name) != here.get(name)
    ]
    if different:
        raise ResourcesError(
            f"{node.description} runs other software than the driver: {'; '.join(different)}. Ranks would compute "
            "different numbers: give all nodes one environment or image."
        )
