"""The media a row names or holds, as paths that can be opened: bytes and zip members become files, the rest is checked.

>>> inside("images", "a/b.png"), inside("images", "a/../b.png")
('images/a/b.png', 'images/b.png')
>>> inside("images", "../../etc/passwd")
Traceback (most recent call last):
    ...
unifiedreward_think.errors.RecordError: media '../../etc/passwd' leaves its folder; paths must stay inside it

Nothing is decoded here, so that importing is fast; `check` opens every picture.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlparse

from unifiedreward_think.checksums import sha256_if_there
from unifiedreward_think.data.formats.files import DataError, LeftOut, is_url
from unifiedreward_think.errors import RecordError
from unifiedreward_think.writing import keep

Location = Literal["bytes", "path", "frames", "any"]
LOCATIONS: tuple[Location, ...] = ("bytes", "path", "frames", "any")
FOLDER = "media"  # of the output
MAX_FILE_BYTES = 512 * 2**20  # a longer picture or clip is no honest one
MAX_RATIO = 200  # pictures and clips are compressed already: zip hardly shrinks them
THREADS = 8  # that read stored files again
SMALL = 2**20  # below this a member may compress as it likes (drawings do)
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"\x1aE\xdf\xa3": ".webm",
}


class MediaStore:
    """Finds the media of one source.

    Args:
        output: the folder of the import; bytes and members of archives go to its `media/`.
        root: folder that paths start from.
        folder: sub-folder of `root` (and of the archives) that the source's paths start from.
        location: what the values must be: "bytes", "path" (to a file), "frames" (path of a folder, or a list of
            paths), or "any".
        archives: zip files whose members stand in for files below `root`.
        url_folder: folder that holds the files of URLs under their own names; without it such rows are left out.

    Raises:
        DataError: an archive is missing, broken, or a bomb.
    """

    def __init__(
        self,
        output: Path,
        root: Path,
        *,
        folder: str = "",
        location: Location = "any",
        archives: tuple[Path, ...] = (),
        url_folder: Path | None = None,
    ) -> None:
        self._output, self._folder, self._location, self._urls = output, folder, location, url_folder
        self._root = str(root.absolute()).rstrip("/")
        self._archives = [_open_archive(path) for path in archives]
        self._members = {
            name: archive for archive in reversed(self._archives) for name in archive.namelist() if name[-1:] != "/"
        }

    def entry(self, value: Any) -> tuple[str, ...]:
        """Return one media entry of a record. Stored files are named relative to the output, others absolute.

        Raises:
            LeftOut: the value is a URL.
            RecordError: it is no media, does not exist, leaves its folder, or is not where the source says.
        """
        if isinstance(value, list | tuple):
            if not value:
                raise RecordError("media is an empty list; name a file for every candidate")
            return tuple(self._one(item) for item in value)
        return (self._one(value),)

    def _one(self, value: Any) -> str:
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, bytes):
            return self._stored(value, "")
        if not isinstance(value, str) or not value:
            raise RecordError(f"media is {str(value)[:60]!r} ({type(value).__name__}); expected a path or bytes")
        if self._location == "bytes":
            raise RecordError(f"media is {value[:60]!r}; this source holds pictures as bytes: use its parquet files")
        if is_url(value):
            return self._url(value)
        if self._members and (name := inside(self._folder, value)) in self._members:
            return self._member(name)
        return self._file(value)

    def _url(self, value: str) -> str:
        if self._urls is None or value.startswith("data:"):
            raise LeftOut("media is a URL; fetch the files into a folder and name it with --url-folder")
        file = self._urls.absolute() / PurePosixPath(urlparse(value).path).name
        if not file.is_file():
            raise RecordError(f"media {value[:200]!r}: no file {file.name[:100]!r} in {self._urls}")
        return str(file)

    def _file(self, value: str) -> str:
        if value.startswith("/"):
            path = os.path.normpath(value)
            if not path.startswith(self._root + "/"):
                raise RecordError(f"media {value[:200]!r} leaves its folder; name that folder with --media-root")
        else:
            path = f"{self._root}/{inside(self._folder, value)}"
        if not os.path.exists(path):  # noqa: PTH110  # this runs twice a row: pathlib is ten times slower
            raise RecordError(f"media {path[:300]!r}: no such file; check the path and --media-root")
        if self._location == "frames" and not os.path.isdir(path):  # noqa: PTH112
            raise RecordError(f"media {path[:300]!r} is a file; this source keeps the frames of a video in a folder")
        return path

    def _member(self, name: str) -> str:
        archive = self._members[name]
        member = archive.getinfo(name)
        if member.flag_bits & 1:
            raise RecordError(f"media {name!r} is encrypted in {archive.filename}")
        if member.file_size > MAX_FILE_BYTES or member.file_size > max(SMALL, MAX_RATIO * member.compress_size):
            raise RecordError(
                f"media {name!r} would grow from {member.compress_size:,} to {member.file_size:,} bytes: a zip bomb"
            )
        try:
            with archive.open(member) as file:
                data = file.read(member.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, LZMAError, OSError, EOFError, NotImplementedError) as error:
            raise RecordError(f"media {name!r} cannot be unpacked from {archive.filename} ({error})") from error
        return self._stored(data, PurePosixPath(name).suffix.lower())

    def _stored(self, data: bytes, suffix: str) -> str:
        if len(data) > MAX_FILE_BYTES:
            raise RecordError(f"media of {len(data):,} bytes; the limit is {MAX_FILE_BYTES:,}")
        suffix = suffix or _suffix(data)
        name = hashlib.sha256(data).hexdigest()
        file = self._output / FOLDER / name[:2] / f"{name[:32]}{suffix}"
        keep(file, data)
        return f"{FOLDER}/{name[:2]}/{file.name}"


def inside(folder: str, path: str) -> str:
    """Return `folder/path` without '.' and '..', as a relative path.

    Raises:
        RecordError: the path leaves the folder. Links that the user made are followed.
    """
    full = os.path.normpath(f"{folder}/{path}" if folder else path)
    if full.startswith(("../", "/")) or full == "..":
        raise RecordError(f"media {path[:200]!r} leaves its folder; paths must stay inside it")
    return full


def damaged(output: Path, paths: Iterable[str]) -> list[str]:
    """Return which of the files stored in an output are not there, or not what they were: digests are their names.

    Args:
        output: of the import.
        paths: of media, as a record names them; those of files that are not stored here are passed over.
    """
    stored = [path for path in paths if path.startswith(f"{FOLDER}/")]
    with ThreadPoolExecutor(THREADS) as threads:
        digests = threads.map(lambda path: sha256_if_there(output / path), stored)
        return [path for path, sha256 in zip(stored, digests, strict=True) if sha256[:32] != PurePosixPath(path).stem]


def sweep(output: Path) -> None:
    """Remove what a killed run left half written."""
    for scratch in sorted((output / FOLDER).glob("*/*.new")):
        scratch.unlink()


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip file ({error}); join its parts, or fetch it again") from error
    total, packed = sum(m.file_size for m in archive.infolist()), path.stat().st_size
    if total > max(100 * SMALL, MAX_RATIO * packed):
        raise DataError(f"{path}: would grow from {packed:,} to {total:,} bytes: a zip bomb")
    return archive


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:8] == b"ftyp":
        return ".mp4"
    for magic, suffix in _MAGIC.items():
        if data.startswith(magic):
            return suffix
    raise RecordError(f"media bytes start with {data[:8]!r}: no known picture or clip")
