"""What a judgment saw: one digest of a record's texts and of what is in its media files, its label apart.

Under the same id, a record whose caption, answers or pictures were corrected has another digest; one whose files were
moved, or whose label was corrected, has the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.media import frames_in
from unifiedreward_think.records import PreferenceRecord, digest


def content_of(record: PreferenceRecord) -> str:
    """Return the digest of what is judged; "" where a medium cannot be read."""
    try:
        media = [[_files(Path(path)) for path in entry] for entry in record.media]
    except OSError:
        return ""
    texts = (record.task, record.prompt, record.answers, record.instruction, record.places)
    return f"{digest(*texts, media):016x}"


def _files(path: Path) -> list[str]:
    """Return the digests of a file, or of the frames in a folder in their order."""
    files = frames_in(path) if path.is_dir() else [path]
    return [_sha256(file, (stat := file.stat()).st_size, stat.st_mtime_ns, stat.st_ino) for file in files]


@lru_cache(maxsize=100_000)
def _sha256(path: Path, *version: int) -> str:
    """Return the digest of a file; both orders and all samples of a pair ask for it."""
    return file_sha256(path)
