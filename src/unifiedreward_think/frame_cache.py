"""Frames of clips as PNG files: what is served is what was written, whole and unchanged, or it is decoded again.

A folder holds the frames of a clip and, written last, `frames.json` with their names and digests. Scratch file systems
purge files, and disks spoil them: frames whose list is gone, or that differ from it, are not served.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from unifiedreward_think.checksums import differing, file_sha256, read_checked, summed
from unifiedreward_think.decoders import Film
from unifiedreward_think.writing import whole, write_whole

LIST = "frames.json"


class Stored(NamedTuple):
    """The files of sampled frames, how many frames the clip has, and how many in a second on average."""

    files: list[Path]
    total: int
    fps: float


def load(folder: Path) -> Stored | None:
    """Return the frames of a folder, None if they are not those that were stored."""
    listed = read_checked(folder / LIST)
    if listed is None or differing(folder, listed["sha256"]):
        return None
    return Stored([folder / name for name in listed["sha256"]], listed["total"], listed["fps"])


def store(film: Film, folder: Path) -> Stored:
    """Write frames, each file whole or not at all; other processes may be writing the same.

    Raises:
        OutputError: they cannot be written.
    """
    digests = {}
    for number, frame in enumerate(film.frames):
        name = f"{number:04d}.png"
        with whole(folder / name, cache=True) as scratch:
            frame.save(scratch, "PNG", compress_level=1)
            digests[name] = file_sha256(scratch)
    content = summed({"total": film.total, "fps": film.fps, "sha256": digests})
    write_whole(folder / LIST, json.dumps(content), cache=True)
    return Stored([folder / name for name in digests], film.total, film.fps)
