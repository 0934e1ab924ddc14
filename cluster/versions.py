"""Versions of what computes, read without importing any of it."""

from __future__ import annotations

import platform
from importlib import metadata


def library_versions() -> dict[str, str]:
    """Versions of Python, torch, DeepSpeed, Ray and NumPy; `absent` where one is not installed."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "deepspeed", "ray", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
