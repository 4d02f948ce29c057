"""A data command that is killed, at any moment and again and again, ends with the bytes of an undisturbed run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import data_sources
from helpers.data import imported, save, scripted
from helpers.servers import serving
from unifiedreward_think.data.shards import claim
from unifiedreward_think.in_use import LOCK, release
from unifiedreward_think.records import PreferenceRecord, Trace

# Runs a command in children of one process, so that its libraries are imported once. A child dies at a chosen one of
# its calls that change files, or up to two milliseconds later, in the middle of what comes next.
KILLING = r"""
import importlib, json, os, random, signal, sys, traceback
from pathlib import Path

order = json.loads(sys.argv[1])
for name in order["preload"]:
    importlib.import_module(name)
command = importlib.import_module(order["module"])
for path, value in order["patches"].items():
    module, _, name = path.rpartition(".")
    setattr(importlib.import_module(module) if module else command, name, value)
importlib.import_module("unifiedreward_think.provenance").commit = lambda root: "the same in all runs"
root, rng = Path(order["root"]), random.Random(order["seed"])
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect", "os.truncate"}


def watch(moment, delay):
    seen = 0

    def hook(event, args):
        nonlocal seen
        writes = event == "open" and str(args[0]).startswith(order["root"]) and args[1] not in ("r", "rb")
        if not writes and event not in EVENTS:
            return
        seen += 1
        if not moment:
            (os.write(counter, b"."))
        elif seen == moment and delay:
            signal.setitimer(signal.ITIMER_REAL, delay)  # nobody handles its signal: it kills
        elif seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(output, moment=None, delay=0.0):
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        if moment is not None:
            watch(moment, delay)
        try:
            command.main([part.replace("OUTPUT", str(output)) for part in order["arguments"]])
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the command failed"
    return os.WIFSIGNALED(status)


read_end, counter = os.pipe()
os.set_blocking(read_end, False)
assert not run(root / "whole", moment=0)
moments = len(os.read(read_end, 2**16))
kills = []
for chain in range(order["chains"]):
    for _ in range(2):
        moment, delay = rng.randint(1, moments), rng.choice([0.0, rng.uniform(1e-5, 2e-3)])
        kills.append(run(root / f"killed-{chain}", moment, delay))
    assert not run(root / f"killed-{chain}")
print(json.dumps({"moments": moments, "kills": sum(kills)}))
"""


PART_ROWS = "unifiedreward_think.data.shards.PART_ROWS"


def killed(root, module, arguments, preload=(), patches=None, chains=2, seed=0):
    """Kill a command in `chains` folders, twice in each, and let it finish; return how many kills struck."""
    order = {"module": module, "arguments": list(map(str, arguments)), "root": str(root), "chains": chains}
    order |= {"preload": list(preload), "patches": patches or {}, "seed": seed}
    done = subprocess.run(
        [sys.executable, "-c", KILLING, json.dumps(order)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"], found
    return [root / f"killed-{chain}" for chain in range(chains)]


def tree(place):
    """The bytes of all files in a folder."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records with duplicates for `check` to find, and traces for `export`."""
    root = tmp_path_factory.mktemp("records")
    imported("hpdv2_train", root / "pairs")
    imported("imagegen_cot_reward_5k", root / "traces")
    return [root / "pairs" / "out", root / "traces" / "out"]


def test_import(tmp_path):
    file, _ = data_sources.hpd(tmp_path)
    arguments = ["--source", "hpd", "--input", file, "--output", "OUTPUT", "--part-rows", "5"]
    for output in killed(tmp_path, "unifiedreward_think.data.importing", arguments, ["pyarrow.parquet"]):
        assert tree(output) == tree(tmp_path / "whole")


def test_check(records, tmp_path):
    folder = tmp_path / "pictures"
    data_sources.save_pictures(folder, ["a.png"])
    arguments = ["--input", *records, "--output", "OUTPUT", "--against", folder]
    preload, patches = ["pyarrow.parquet", "imagehash", "sqlite3"], {"BATCH": 4, PART_ROWS: 5}
    for output in killed(tmp_path, "unifiedreward_think.data.curation.check", arguments, preload, patches):
        assert tree(output) == tree(tmp_path / "whole")
        assert not (output / "scratch.sqlite").exists()


def test_split(records, tmp_path):
    (tmp_path / "mixture.yaml").write_text("hpdv2_train: 1\nimagegen_cot_reward_5k: 0.5\n")
    arguments = ["--input", *records, "--output", "OUTPUT", "--mixture", tmp_path / "mixture.yaml"]
    preload = ["pyarrow.parquet", "scipy.sparse.csgraph", "yaml"]
    for output in killed(tmp_path, "unifiedreward_think.data.curation.split", arguments, preload, {PART_ROWS: 3}):
        assert tree(output) == tree(tmp_path / "whole")


@pytest.mark.parametrize("form", ["llamafactory", "trl"])
def test_export(form, records, tmp_path):
    arguments = ["--input", *records, "--format", form, "--output", "OUTPUT"]
    preload = ["pyarrow.parquet", "PIL.Image", *(["datasets"] if form == "trl" else [])]
    patches = {"unifiedreward_think.data.export_files.PARQUET_ROWS": 5}
    for output in killed(tmp_path, "unifiedreward_think.data.exporting", arguments, preload, patches):
        assert tree(output) == tree(tmp_path / "whole")


def test_report(records, tmp_path):
    arguments = ["--input", *records, "--output", "OUTPUT/report.html", "--examples", "2"]
    preload = ["pyarrow.parquet", "PIL.Image", "jinja2"]
    for output in killed(tmp_path, "unifiedreward_think.data.report", arguments, preload):
        assert tree(output) == tree(tmp_path / "whole")


def test_distill(tmp_path):
    """What was spent is not compared: a request that was killed counts at the most that it can have cost."""
    data_sources.save_pictures(tmp_path, ["a.png", "b.png"])
    media = ((str(tmp_path / "a.png"),), (str(tmp_path / "b.png"),))
    common = {"task": "image_generation", "media": media, "preferred": 1, "source": "hpd"}
    rows = [Trace(record=PreferenceRecord(id=f"r{i:02d}", prompt=f"picture {i}", **common)) for i in range(8)]
    arguments = ["--input", save(tmp_path / "records", rows), "--output", "OUTPUT", "--model", "teacher"]
    preload, patches = ["pyarrow.parquet", "openai", "PIL.Image"], {"PAIRS": 3}
    with serving(scripted) as server:
        command = [*arguments, "--server", server.url]
        folders = killed(tmp_path, "unifiedreward_think.traces.distillation", command, preload, patches)
    for output in folders:
        for name in ("traces.jsonl", "rejected.jsonl"):
            assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        counts = (json.loads((place / "manifest.json").read_text())["counts"] for place in (output, tmp_path / "whole"))
        assert len({json.dumps({**found, "usd": 0}) for found in counts}) == 1


def test_what_a_kill_left_half_written_is_swept_and_the_rest_stays(tmp_path):
    for name in ("part-00000.parquet", "part-00001.parquet.new", "train/train-00000.parquet.new", "left_out/1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("frames/abc-8-pyav", "frames/abd-8-pyav.17.42"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0000.png").touch()
    claim(tmp_path, {"command": "test"})
    release(tmp_path / LOCK)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"part-00000.parquet", "left_out/1.jsonl", "frames/abc-8-pyav/0000.png", "settings.json"}
    assert not Path(tmp_path, "frames", "abd-8-pyav.17.42").exists()
