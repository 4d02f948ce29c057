"""Files that are whole or not there: after a kill, on a full disk, with several writers."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from unifiedreward_think.writing import OutputError, append, open_to_append, whole, write_whole


@contextmanager
def largest_file(size):
    """Let the kernel refuse what goes beyond `size` bytes of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_cannot_be_written_stays_as_it_was_and_is_named(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with largest_file(100), pytest.raises(OutputError, match=r"results\.json: cannot be written .*ulimit -f.*goes on"):
        write_whole(path, "x" * 1000)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_called_so_and_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError, match=r"results\.json: cannot be written .*the disk is full: free some space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with (
        open_to_append(tmp_path / "lines.jsonl") as file,
        pytest.raises(OutputError, match=r"lines\.jsonl: .*the disk is full"),
    ):
        append(file, "line\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_device_without_space_is_told_while_appending():
    with Path("/dev/full").open("ab", buffering=0) as file, pytest.raises(OutputError, match=r"/dev/full: .*is full"):
        append(file, "line\n")


def test_what_another_library_writes_takes_its_place_only_when_all_went_well(tmp_path):
    path = tmp_path / "deep" / "table.bin"
    with whole(path) as scratch:
        scratch.write_bytes(b"one")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="the library failed"), whole(path) as scratch:
        scratch.write_bytes(b"tw")
        raise RuntimeError("the library failed")
    assert path.read_bytes() == b"one" and list(path.parent.iterdir()) == [path]


def test_a_file_that_the_block_cannot_read_is_not_taken_for_the_one_it_writes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.json"), whole(tmp_path / "out.json"):
        (tmp_path / "gone.json").read_text()


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (lambda path: write_whole(path, ""), open_to_append):
        with pytest.raises(OutputError, match=r"out\.json: cannot be written"):
            call(tmp_path / "file" / "out.json")


def test_a_cache_file_may_be_made_by_two_at_once(tmp_path):
    path = tmp_path / "picture.png"
    with whole(path, cache=True) as mine:
        mine.write_bytes(b"same")
        code = f"from unifiedreward_think.writing import *; write_whole(Path({str(path)!r}), b'same', cache=True)"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert path.read_bytes() == b"same" and list(tmp_path.iterdir()) == [path]


def test_a_kill_at_any_moment_leaves_one_of_the_two_texts(tmp_path):
    path = tmp_path / "text"
    texts = {"a" * 300_000, "b" * 300_000}
    code = (
        "import sys; from pathlib import Path; from unifiedreward_think.writing import write_whole\n"
        "while True:\n    for letter in 'ab': write_whole(Path(sys.argv[1]), letter * 300_000)"
    )
    for wait in (0.0, 0.003, 0.01):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert path.read_text() in texts
        path.unlink()
