"""What a worker takes from its machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cluster.on_ray.node import interface_of, use_node_local_caches


def test_interface_is_that_of_the_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # kept for documentation: nobody has it


def test_interface_is_found_for_the_address_of_the_default_route() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no route")
        address = probe.getsockname()[0]
    assert interface_of(address) in {name for _, name in socket.if_nameindex()}


def test_caches_lie_on_the_node_unless_the_user_chose_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/chosen")
    use_node_local_caches()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/chosen"
    assert f"longhaul-{os.getuid()}" in os.environ["TRITON_CACHE_DIR"]
    monkeypatch.delenv("TRITON_CACHE_DIR")


def test_caches_lie_elsewhere_when_the_place_belongs_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for variable in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.setenv(variable, "restored by the fixture")
        monkeypatch.delenv(variable)
    (tmp_path / f"longhaul-{os.getuid()}").symlink_to("/tmp")
    use_node_local_caches()
    chosen = Path(os.environ["TRITON_CACHE_DIR"]).parent
    assert chosen != tmp_path / f"longhaul-{os.getuid()}"
    assert chosen.stat().st_mode & 0o077 == 0
