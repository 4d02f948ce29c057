"""Two ranks of which one ends early, as under plain `srun`; for test_early_ends, not a test file.

python tests/helpers/early_ends.py FOLDER
"""

import json
import os
import socket
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import kill_stages
import kills

from unifiedreward_think.data.formats import loading
from unifiedreward_think.in_use import LOCK, holding


def late(read, seconds, file, *args, **kwargs):
    """Read training data after a while, and note when that was."""
    time.sleep(seconds)
    Path(file).write_text(str(time.time()))
    return read(*args, **kwargs)


def rank(stage, arguments, number, port, log, *, seconds, note):
    """Fork one of two ranks, which takes its time to read its data; a fork has the libraries imported."""
    names = ("load_checked_traces", "load_checked_records")
    before = {name: getattr(loading, name) for name in names}
    for name, read in before.items():  # the child's; the stage is run anew there, and takes what it finds here
        setattr(loading, name, partial(late, read, seconds, note))
    try:
        return kills.fork(stage, arguments, number, port, log)
    finally:
        for name, read in before.items():
            setattr(loading, name, read)


def two(root, name, stage, *changes, start=(0, 0), read=(0, 0)):
    """Run a stage on two ranks; `changes` are arguments of each. Return statuses, what was said, who outlived whom."""
    output = root / stage.name
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began, pids = time.time(), []
    logs, notes = ([root / f"{name}.{number}.{kind}" for number in (0, 1)] for kind in ("log", "note"))
    for number in sorted((0, 1), key=lambda number: start[number]):
        time.sleep(max(0, began + start[number] - time.time()))
        more = changes[number] if changes else []
        words = [*stage.arguments, "--output_dir", output, *more]
        pids.append(rank(stage, words, number, port, logs[number], seconds=read[number], note=notes[number]))
    ends = {}
    while len(ends) < 2 and time.time() < began + 120:
        for pid in set(pids) - ends.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ends[pid] = (os.waitstatus_to_exitcode(status), time.time())
        time.sleep(0.02)
    for pid in set(pids) - ends.keys():
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    read_at = [float(note.read_text()) for note in notes if note.exists()]
    return {
        "statuses": [ends.get(pid, (None, 0))[0] for pid in pids],
        "said": [log.read_text() for log in logs],
        "first end after last read": bool(ends) and min(end for _, end in ends.values()) > max(read_at),
    }


@contextmanager
def in_the_way(path):
    """Put a folder where a file is to be written."""
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    try:
        yield
    finally:
        path.rmdir()


def unfinished(folder):
    """Let a finished run look like one that was killed while it wrote its last files."""
    row = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**row, "finished": False}))


def main(root):
    from trl import SFTTrainer  # noqa: F401 - the forked processes have it then

    kills.make_apart(lambda: kill_stages.make_inputs(root))
    known = kill_stages.stages(root)
    sft, sampling = known["sft_2_ranks"], known["rejection_sampling"]
    sampling.ranks = 2
    missing = ["--train_files", root / "missing.jsonl"]
    said = {}

    def case(name, stage, *changes, **options):
        said[name] = two(root, name.replace(" ", "_"), stage, *changes, **options)

    for stage in (sft, sampling):
        case(f"{stage.name}: rank 1 misses its data", stage, [], missing, read=(0, 3))
        case(f"{stage.name}: rank 0 misses its data", stage, missing, [], read=(0, 3))
        lock = f"judgments.jsonl{LOCK}" if stage is sampling else LOCK
        with holding(root / stage.name / lock):
            case(f"{stage.name}: in use", stage, read=(0, 3))
    with in_the_way(root / "rejection_sampling" / "kept.jsonl"):
        case("rejection_sampling: the end cannot be written", sampling)
    for stage in (sft, sampling):
        case(f"{stage.name}: runs", stage)
        case(f"{stage.name}: finished, rank 1 is late", stage, start=(0, 3), read=(0, 3))
        case(f"{stage.name}: finished, rank 0 is late", stage, start=(3, 0), read=(3, 0))
    unfinished(root / "sft_2_ranks")
    with in_the_way(root / "sft_2_ranks" / "log_history.json"):
        case("sft_2_ranks: the end cannot be written", sft)
    case("sft_2_ranks: only a look", sft, *[["--check_data", "true"]] * 2, read=(0, 3))
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
