"""Random damage to the files of a checkpoint: whatever it is, the checkpoint is rejected before anything is loaded."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save

from cluster.checkpoint import VerifiedFiles, list_checkpoints, newest_verified

STEP = 2
Damage = Callable[[Path, random.Random, Path], None]


def flip_bits(path: Path, draw: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in draw.sample(range(len(data)), draw.choice((1, 1, 1, 2, 9))):
        data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut_short(path: Path, draw: random.Random, other: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def extend(path: Path, draw: random.Random, other: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data + draw.choice((b"\n", b" ", b"\0", data, draw.randbytes(draw.randint(1, 4096)))))


def overwrite_block(path: Path, draw: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data))
    old = bytes(data[start : start + 512])
    new = draw.choice((bytes(len(old)), draw.randbytes(len(old))))
    data[start : start + 512] = new if new != old else bytes(byte ^ 0xFF for byte in old)
    path.write_bytes(data)


def insert_or_remove(path: Path, draw: random.Random, other: Path) -> None:
    data = path.read_bytes()
    place = draw.randrange(len(data))
    path.write_bytes(data[:place] + draw.choice((data[place + 1 :], b" " + data[place:], b"0" + data[place:])))


def take_from_another_step(path: Path, draw: random.Random, other: Path) -> None:
    shutil.copyfile(other, path)


def remove(path: Path, draw: random.Random, other: Path) -> None:
    path.unlink()


def make_a_directory(path: Path, draw: random.Random, other: Path) -> None:
    path.unlink()
    path.mkdir()


def take_from_another_rank(path: Path, draw: random.Random, other: Path) -> None:
    """Another rank's file of the same step; in the place of the manifest too."""
    files = sorted(path.parent.glob("rank-*")) or sorted(path.parent.glob("*/rank-*"))
    shutil.copyfile(draw.choice([file for file in files if file != path]), path)


DAMAGES: list[Damage] = [
    flip_bits,
    flip_bits,
    cut_short,
    extend,
    overwrite_block,
    insert_or_remove,
    take_from_another_step,
    remove,
    make_a_directory,
    take_from_another_rank,
]


def is_rejected(run: Path) -> bool:
    """Whether neither the catalogue nor any rank's verification lets the step through."""
    found = [info for info in list_checkpoints(run) if info.step == STEP]
    return all(VerifiedFiles(info).verify_share(0, 2) or VerifiedFiles(info).verify_share(1, 2) for info in found)


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_checkpoint_is_rejected_whatever_the_damage(count: int, tmp_path: Path) -> None:
    for step, shift in ((1, 0.0), (STEP, 100.0)):
        save(tmp_path, step, shift=shift)
    whole = tmp_path / "checkpoints" / f"step-{STEP:08d}"
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert len(files) == 3
    draw = random.Random(0)
    loaded = []
    for number in range(count):
        damage, name = DAMAGES[number % len(DAMAGES)], draw.choice(files)
        damage(whole / name, draw, tmp_path / "checkpoints" / "step-00000001" / name)
        if not is_rejected(tmp_path):
            loaded.append((number, damage.__name__, str(name)))
        if (whole / name).is_dir():
            (whole / name).rmdir()
        shutil.copyfile(kept / name, whole / name)
    assert loaded == []
    assert not is_rejected(tmp_path)  # undamaged it is taken
    newest = newest_verified(tmp_path)
    assert newest is not None
    assert newest.step == STEP


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "damage"}', b"\xff\xfe"])
def test_checkpoint_stays_rejected_when_its_rejection_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000001" / "REJECTED.json").write_bytes(content)
    (info,) = list_checkpoints(tmp_path)
    assert info.problem is not None
    assert "REJECTED.json cannot be read" in info.problem


@pytest.mark.parametrize("content", [b"Infinity", b'{"checksum": "x", "a": 1e999}', b"[" * 100_000])
def test_manifest_is_refused_when_it_holds_what_json_readers_stumble_over(content: bytes, tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000001" / "MANIFEST.json").write_bytes(content)
    (info,) = list_checkpoints(tmp_path)
    assert info.problem is not None
    assert "cannot be used" in info.problem
