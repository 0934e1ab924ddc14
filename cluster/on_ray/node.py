"""What a worker process takes from the machine it runs on: a network interface and a place for caches."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from cluster.storage.scratch import private_directory

_SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of an interface


def interface_of(address: str) -> str | None:
    """Name of the interface with an IPv4 address; None where none has it (IPv6, or an address of the loopback net)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def use_node_local_caches() -> None:
    """Keep what torch and Triton compile on the node's own disk: home directories are often shared, with their locks.

    A directory that the user chose stays.
    """
    caches = private_directory()
    for variable, name in (
        ("TORCH_EXTENSIONS_DIR", "torch_extensions"),
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("TRITON_CACHE_DIR", "triton"),
    ):
        os.environ.setdefault(variable, str(caches / name))
