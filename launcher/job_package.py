"""The working directory that a job travels with: the code and the resolved configuration, and nothing else."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LauncherError
from launcher.packages import PACKAGES

CONFIG_NAME = "config.yaml"
LIMIT_BYTES = 90 * 2**20
"""Ray's job server refuses more than 100 MiB, zipped."""
_LEFT_OUT = ("__pycache__", "*.pyc", "*.egg-info", ".*")


@dataclass(frozen=True, kw_only=True)
class JobPackage:
    """A staged working directory and what it weighs."""

    directory: Path
    files: tuple[tuple[str, int], ...]
    """Path and bytes of each file, the largest first."""
    zipped_bytes: int
    """As it is sent."""

    @property
    def size_bytes(self) -> int:
        """As it is unpacked."""
        return sum(size for _, size in self.files)


def stage(directory: Path, config_yaml: str, root: Path | None = None) -> JobPackage:
    """Put the four packages and the configuration into an empty directory, and weigh it.

    Args:
        directory: Empty, removed by the caller after the submission.
        config_yaml: Every field spelled out, so that nothing on this machine matters any more.
        root: Where the packages lie; None takes those that run now.

    Raises:
        LauncherError: It is too large to be sent; the largest files are named.
    """
    root = root or Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        shutil.copytree(root / name, directory / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    (directory / CONFIG_NAME).write_text(config_yaml, encoding="utf-8")
    paths = [path for path in directory.rglob("*") if path.is_file()]
    files = [(str(path.relative_to(directory)), path.stat().st_size) for path in paths]
    package = JobPackage(
        directory=directory,
        files=tuple(sorted(files, key=lambda file: (-file[1], file[0]))),
        zipped_bytes=_zipped_bytes(paths, directory),
    )
    if package.zipped_bytes > LIMIT_BYTES:
        largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in package.files[:5])
        raise LauncherError(
            f"the working directory of the job weighs {package.zipped_bytes / 2**20:.1f} MiB zipped, and a cluster "
            f"takes at most {LIMIT_BYTES / 2**20:.0f}. The largest files: {largest}. They lie in the packages under "
            f"{root}: move data out of them."
        )
    return package


def _zipped_bytes(paths: list[Path], directory: Path) -> int:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.relative_to(directory))
    return buffer.getbuffer().nbytes
