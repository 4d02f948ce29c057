"""Two live runs never write into one output: the second is refused, and a killed first one does not block."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.data import row, run_import, tree
from helpers.judging import LooksForRed, make_records, protocol
from unifiedreward_think import in_use
from unifiedreward_think.data.exporting import main as export_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.in_use import LOCK, hold, holding, release
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import TrainingExtras

HOLD = "import sys; from pathlib import Path; from unifiedreward_think.in_use import hold; hold(Path(sys.argv[1])); "


ELSEWHERE = "import socket; socket.gethostname = lambda: 'far-away'; "
ELSEWHERE += "from unifiedreward_think import in_use; in_use.BEAT = 0.05; "


def holder(lock, then="print('held', flush=True); sys.stdin.read()", first=""):
    """Start a process that holds a lock until its input is closed."""
    command = [sys.executable, "-c", first + HOLD + then, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    """The lock of a folder that another live process holds."""
    lock = tmp_path / "out" / LOCK
    process = holder(lock)
    yield SimpleNamespace(lock=lock, process=process, folder=lock.parent)
    process.stdin.close()
    process.wait()


def test_a_folder_in_use_is_refused_with_host_process_and_time(other):
    with pytest.raises(InputError) as error:
        hold(other.lock)
    said = json.loads(other.lock.read_text())
    assert str(other.folder) in str(error.value)
    assert f"process {other.process.pid} on {said['host']} since {said['since']}" in str(error.value)


def test_a_run_that_has_ended_leaves_no_lock(other):
    other.process.stdin.close()
    other.process.wait()
    assert not other.lock.exists()
    with holding(other.lock):
        assert json.loads(other.lock.read_text())["process"] == os.getpid()
    assert not other.lock.exists()


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_the_lock_of_a_killed_run_does_not_block(other, reaped):
    other.process.send_signal(signal.SIGKILL)
    if reaped:
        other.process.wait()
    else:
        stat = Path(f"/proc/{other.process.pid}/stat")
        while ") Z" not in stat.read_text():
            time.sleep(0.01)
    assert other.lock.exists()
    with holding(other.lock):
        pass


def test_another_process_of_the_same_number_does_not_block(other):
    said = json.loads(other.lock.read_text())
    other.lock.write_text(json.dumps({**said, "started": "1"}))
    with holding(other.lock):
        pass


@pytest.fixture
def far(tmp_path, monkeypatch):
    """The lock of a folder that a live process of another host holds, and one second until it counts as dead."""
    monkeypatch.setattr(in_use, "BEAT", 0.1)
    lock = tmp_path / "out" / LOCK
    process = holder(lock, first=ELSEWHERE)
    yield SimpleNamespace(lock=lock, process=process)
    process.kill()
    process.communicate()


def taken_over(lock):
    """Hold a lock as soon as its holder counts as dead."""
    for _ in range(200):
        try:
            return hold(lock)
        except InputError:
            time.sleep(0.1)
    raise AssertionError("still refused after 20 s")


def test_a_live_run_on_another_host_keeps_its_folder_and_a_killed_one_loses_it(far, capsys):
    time.sleep(1.5)
    for _ in range(3):  # asking is no sign of life
        with pytest.raises(InputError, match=f"in use by process {far.process.pid} on far-away since"):
            hold(far.lock)
    far.process.kill()
    started = time.monotonic()
    taken_over(far.lock)
    assert 0.5 < time.monotonic() - started < 5
    assert json.loads(far.lock.read_text())["process"] == os.getpid()
    said = capsys.readouterr().err
    assert f"taken over from process {far.process.pid} on far-away" in said and "no sign of life for 1 s" in said
    release(far.lock)


def test_a_child_that_outlives_a_killed_run_is_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(in_use, "BEAT", 0.1)
    then = "child = os.fork(); child or time.sleep(60); print('held', child, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", f"import os, time; {ELSEWHERE}{HOLD}{then}", str(tmp_path / LOCK)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[1])
    process.kill()
    taken_over(tmp_path / LOCK)
    os.kill(child, signal.SIGKILL)
    release(tmp_path / LOCK)


def test_a_halted_run_that_has_lost_its_folder_ends_when_it_goes_on(far):
    far.process.send_signal(signal.SIGSTOP)
    taken_over(far.lock)
    ours = far.lock.read_text()
    far.process.send_signal(signal.SIGCONT)
    assert far.process.wait(20) == 1
    assert f"taken over by process {os.getpid()} on" in far.process.stderr.read()
    assert far.lock.read_text() == ours
    release(far.lock)


@pytest.mark.parametrize("where", [{"host": "far-away"}, {"space": "pid:[1]"}, {"space": None}])
@pytest.mark.parametrize("hours", [0, 5, -5], ids=["", "fast clock", "slow clock"])
def test_how_long_a_run_was_silent_is_told_by_the_clock_of_the_files(where, hours, tmp_path, monkeypatch, capsys):
    lock = tmp_path / LOCK
    with holding(lock):
        said = {**json.loads(lock.read_text()), "process": 7, **where}  # a container may have the name of its host
    lock.write_text(json.dumps({key: value for key, value in said.items() if value}))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600 * hours)
    os.utime(lock, (now - 190, now - 190))
    with pytest.raises(InputError, match=rf"process 7 on .* from \d\d:\d\d:\d\d, 200 s after .* remove {lock}"):
        hold(lock)
    os.utime(lock, (now - 201, now - 201))
    with holding(lock):
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert "no sign of life for 201 s" in capsys.readouterr().err


def test_holding_leaves_no_thread_and_no_file_behind(tmp_path):
    before = set(threading.enumerate())
    with holding(tmp_path / LOCK):
        hold(tmp_path / LOCK)
        assert len(set(threading.enumerate()) - before) == 1
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before and not list(tmp_path.iterdir())


def test_a_lock_removed_by_hand_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(in_use, "BEAT", 0.05)
    with holding(tmp_path / LOCK):
        (tmp_path / LOCK).unlink()
        time.sleep(0.2)
        (tmp_path / LOCK).write_text("{")  # as of one that is just being written
        time.sleep(0.2)
        hold(tmp_path / LOCK)
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": 1}', "\0\0"])
def test_half_a_lock_does_not_block(text, tmp_path):
    (tmp_path / LOCK).write_text(text)
    with holding(tmp_path / LOCK):
        pass


def test_a_process_may_hold_what_it_holds(tmp_path):
    with holding(tmp_path / LOCK):
        hold(tmp_path / LOCK)
    release(tmp_path / LOCK)


@pytest.mark.parametrize("first", ["", ELSEWHERE], ids=["of this host", "of another host"])
def test_of_many_that_start_at_once_one_gets_the_folder_of_a_killed_run(first, tmp_path):
    lock = tmp_path / LOCK
    dead = holder(lock, first=first)
    dead.kill()
    dead.wait()
    os.utime(lock, (1, 1))
    then = "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", HOLD + then, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(command, **pipes) for _ in range(6)]
    while sum(process.poll() is None for process in several) > 1:
        time.sleep(0.05)
    (winner,) = [process for process in several if process.poll() is None]
    assert json.loads(lock.read_text())["process"] == winner.pid
    assert winner.communicate("")[0] == "held\n"
    assert all("in use by process" in process.communicate()[1] for process in several if process is not winner)


def test_the_end_of_a_forked_child_does_not_release_the_lock_of_its_parent(tmp_path):
    then = "import os, atexit; child = os.fork() or (atexit._run_exitfuncs(), os._exit(0)); os.waitpid(child, 0); "
    process = holder(tmp_path / LOCK, then + "print('held', flush=True); sys.stdin.read()")
    assert (tmp_path / LOCK).exists()
    process.communicate("")


def test_a_second_import_into_a_folder_is_refused_and_changes_nothing(other, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + "\n")
    before = tree(other.folder)
    with pytest.raises(InputError, match="in use by process"):
        run_import(file, other.folder)
    assert tree(other.folder) == before


def test_data_commands_leave_no_lock_behind(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + "\n")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    run_import(file, tmp_path / "in")
    export_main(["--input", str(tmp_path / "in"), "--format", "records", "--output", str(tmp_path / "out")])
    assert not [name for folder in ("in", "out") for name in tree(tmp_path / folder) if LOCK in name]


def test_a_second_run_of_the_judge_into_a_file_is_refused_and_one_into_another_is_not(tmp_path):
    records = make_records(tmp_path, 2)
    process = holder(tmp_path / f"first.jsonl{LOCK}")
    with pytest.raises(InputError, match="in use by process"):
        judge(records, LooksForRed(), protocol(), tmp_path / "first.jsonl")
    assert not (tmp_path / "first.jsonl").exists()
    judge(records, LooksForRed(), protocol(), tmp_path / "second.jsonl")
    assert not (tmp_path / f"second.jsonl{LOCK}").exists()
    process.communicate("")
    assert len(judge(records, LooksForRed(), protocol(), tmp_path / "first.jsonl")) > 0


def arguments(folder, **changes):
    from transformers import TrainingArguments

    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], **changes), TrainingExtras()


def test_a_second_training_run_into_a_folder_is_refused_and_changes_nothing(other):
    args, extras = arguments(other.folder)
    before = tree(other.folder)
    with pytest.raises(InputError, match="in use by process"):
        run.start(args, extras, stage="sft")
    assert tree(other.folder) == before


def test_a_run_killed_at_its_very_start_can_be_started_again(other):
    other.process.kill()
    other.process.wait()
    args, extras = arguments(other.folder)
    run.start(args, extras, stage="sft")
    assert json.loads(other.lock.read_text())["process"] == os.getpid()
    release(other.lock)


def test_a_folder_is_emptied_without_its_lock(tmp_path):
    args, extras = arguments(tmp_path)
    run.start(args, extras, stage="sft")
    (tmp_path / "old.txt").write_text("")
    run.start(args, TrainingExtras(resume="never", overwrite=True), stage="sft")
    assert (tmp_path / LOCK).exists() and not (tmp_path / "old.txt").exists()
    release(tmp_path / LOCK)
