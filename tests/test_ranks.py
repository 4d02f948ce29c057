"""Judging shared by several ranks: what one process gives, whenever whichever rank is killed."""

import json
import random
from collections import Counter
from itertools import chain
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Lock, Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.judging import LooksForRed, Threads, make_records, protocol
from unifiedreward_think.errors import InputError
from unifiedreward_think.in_use import LOCK
from unifiedreward_think.judging import judge as module
from unifiedreward_think.judging import store as judgment_file
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.ranks import EndedElsewhere, joined


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Fuse:
    """Kills the rank that makes the n-th write, and with it the others, as torchrun does."""

    def __init__(self, writes):
        self.left, self.lock, self.blown = writes, Lock(), False

    def burn(self):
        with self.lock:
            self.left -= 1
            self.blown = self.blown or self.left < 0
        if self.blown:
            raise Killed


def run(records, output, count, *, fuse=None, backend=LooksForRed, **changes):
    """Judge with `count` ranks; return what each gives, its error, or None where the fuse killed them."""
    barrier, brought = Barrier(count), [None] * count
    given: list[Any] = [None] * count

    def work(rank):
        try:
            given[rank] = judge(
                records,
                backend(batch_size=2),
                protocol(**changes),
                output,
                ranks=Threads(rank=rank, count=count, barrier=barrier, brought=brought),
            )
        except (Killed, BrokenBarrierError):
            barrier.abort()
        except (InputError, EndedElsewhere) as error:
            given[rank] = error

    threads = [Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fuse is None or fuse.blown == (given == [None] * count)
    return given


def lines(output):
    """The stored judgments, without the time they took."""
    return [{**json.loads(line), "seconds": 0} for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return make_records(folder, 21)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """What one process stores."""
    output = tmp_path_factory.mktemp("whole") / "j.jsonl"
    judge(records, LooksForRed(batch_size=2), protocol(orders="both"), output)
    return lines(output)


@pytest.fixture
def fused(monkeypatch):
    """Let a fuse burn at every write, merge and removal of a file; half of a line is written before it blows."""
    fuses: list[Fuse] = []
    append, write, unlink = module.append, judgment_file.write_whole, Path.unlink

    def watched_append(file, text):
        try:
            fuses[-1].burn()
        except Killed:
            file.write(text.encode()[:-9])
            raise
        append(file, text)

    def watched_write(path, text):
        fuses[-1].burn()
        write(path, text)

    def watched_unlink(path, **options):
        if not path.name.endswith(LOCK):  # given up when all is done: the other ranks may have returned
            fuses[-1].burn()
        unlink(path, **options)

    def use(writes):
        fuses.append(Fuse(writes))
        monkeypatch.setattr(module, "append", watched_append)
        monkeypatch.setattr(judgment_file, "write_whole", watched_write)
        monkeypatch.setattr(Path, "unlink", watched_unlink)
        return fuses[-1]

    return use


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_ranks_store_what_one_process_stores(count, records, whole, tmp_path):
    given = run(records, tmp_path / "j.jsonl", count, orders="both")
    assert lines(tmp_path / "j.jsonl") == whole
    assert all([json.loads(json.dumps({**row.to_json(), "seconds": 0})) for row in rows] == whole for rows in given)
    assert [path.name for path in tmp_path.iterdir()] == ["j.jsonl"]


def test_ranks_judge_the_batches_of_one_process_and_each_once(records, tmp_path):
    batches = []

    class Noting(LooksForRed):
        def __init__(self, **options):
            super().__init__(**options)
            self.batches = batches

    run(records, tmp_path / "three.jsonl", 3, backend=Noting, orders="both")
    alone = LooksForRed(batch_size=2)
    judge(records, alone, protocol(orders="both"), tmp_path / "one.jsonl")
    assert sorted(batches) == sorted(alone.batches)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), max_size=4), last=st.integers(1, 4))
def test_whichever_rank_is_killed_whenever_the_next_run_goes_on(kills, last, records, whole, fused, tmp_path):
    output = tmp_path / f"{random.random()}.jsonl"
    for count, writes in kills:
        run(records, output, count, fuse=fused(writes), orders="both")
    run(records, output, last, fuse=fused(10**6), orders="both")
    assert lines(output) == whole
    assert [path for path in tmp_path.iterdir() if path.name.startswith(output.name)] == [output]


def test_what_was_judged_before_a_kill_is_not_judged_again(records, fused, tmp_path):
    output = tmp_path / "j.jsonl"
    run(records, output, 3, fuse=fused(9))
    parts = [judgment_file.load_judgments(part) for part in output.parent.glob("j.jsonl.rank*")]
    whole = [record for record, count in Counter(name for part in parts for name, _, _ in part).items() if count == 2]
    batches = []

    class Noting(LooksForRed):
        def __init__(self, **options):
            super().__init__(**options)
            self.batches = batches

    run(records, output, 2, fuse=fused(10**6), backend=Noting)
    assert whole and sorted(chain(*batches)) == sorted({record.id for record in records} - {*whole})


def test_a_folder_that_ranks_do_not_share_is_named(records, tmp_path, monkeypatch):
    """Rank 1 stands on another machine: its file is not to be seen by rank 0."""
    part = module.part_of
    monkeypatch.setattr(module, "part_of", lambda output, ranks: part(output, ranks).with_suffix(f".lost{ranks.rank}"))
    given = run(records, tmp_path / "j.jsonl", 2)
    assert "put it into a folder that all nodes share" in str(given[0])
    assert str(given[1]) == f"error: rank 0: {given[0]}"


def test_without_a_launcher_there_is_one_rank():
    with joined(lambda: "ready") as (ranks, ready):
        ranks.wait()
        assert (ready, ranks.rank, ranks.count, ranks.share([1, 2, 3])) == ("ready", 0, 1, [1, 2, 3])
