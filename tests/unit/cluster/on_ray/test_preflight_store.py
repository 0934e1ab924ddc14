"""What a node finds of an object store, asked as its task is."""

from __future__ import annotations

import pytest

from cluster.errors import StorageError
from cluster.on_ray import preflight
from cluster.on_ray.preflight import NodeAnswer, answer_for_node
from cluster.on_ray.ray_cluster import Node
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_names, write_atomically

NODE = Node(id="n1", host="ten", address="10.0.0.7", cpus=2, gpus=0)


def asked(storage: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check one node, whose task runs in this process."""

    def ask(
        nodes: list[Node], storage: ObjectPath, mark: str, fingerprints: dict[str, str], weights: dict[str, str]
    ) -> list[NodeAnswer]:
        return [answer_for_node(str(storage), mark, node.id, fingerprints, weights) for node in nodes]

    monkeypatch.setattr(preflight, "_ask", ask)
    preflight._check_nodes(storage, {}, [NODE], {})


def test_nothing_is_left_in_the_store_when_a_node_can_use_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectPath(f"{bucket}/runs")
    write_atomically(storage / "other", b"")
    asked(storage, monkeypatch)
    assert list_names(storage) == ["other"]


def test_node_is_named_when_it_has_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = write_atomically

    def write(path: ObjectPath, data: bytes) -> None:
        if path.name.endswith(NODE.id):
            raise PermissionError(13, "Error performing PUT http://169.254.169.254/latest/api/token", str(path))
        refused(path, data)

    monkeypatch.setattr(preflight, "write_atomically", write)
    with pytest.raises(StorageError) as caught:
        asked(ObjectPath(f"{bucket}/runs"), monkeypatch)
    assert "10.0.0.7" in str(caught.value)
    assert "cannot use it: no credentials were found" in str(caught.value)
    assert "Every node needs its own credentials for the store" in str(caught.value)
