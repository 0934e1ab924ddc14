"""The four packages, which must lie together (the package index has another `llm`), and the versions in use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import InstallationError

PACKAGES = ("launcher", "cluster", "data_pipeline", "llm")


def require_one_root() -> None:
    """Refuse to start unless all four packages lie in the same directory. Imports none of them.

    Raises:
        InstallationError: One is missing or comes from somewhere else.
    """
    complaint = disagreement({name: _root_of(name) for name in PACKAGES})
    if complaint is not None:
        raise InstallationError(complaint)


def disagreement(roots: Mapping[str, Path | None]) -> str | None:
    """Say which package is missing or stands elsewhere than `launcher`; None where all agree."""
    home = roots["launcher"]
    for name, root in roots.items():
        if root is None:
            return (
                f"the package '{name}' is missing beside 'launcher' in {home}. "
                "Install Longhaul again (python -m pip install -e . in its directory)."
            )
        if root != home:
            return (
                f"the package '{name}' comes from {root}, but 'launcher' from {home}: another distribution "
                "has a package of the same name. Remove it from this environment, or install Longhaul in a "
                "fresh one."
            )
    return None


def versions() -> dict[str, str]:
    """Versions of Longhaul and of the libraries it computes with, none of them imported."""
    from importlib import metadata

    from cluster.versions import library_versions

    try:
        own = metadata.version("longhaul")
    except metadata.PackageNotFoundError:
        own = f"not installed, run from {Path(__file__).resolve().parents[1]}"
    return {"longhaul": own, **library_versions()}


def _root_of(name: str) -> Path | None:
    spec = find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(locations[0]).resolve().parent if locations else None
