"""How much memory the data commands take, at a number of rows and at a tenth of it.

    OMP_NUM_THREADS=1 python scripts/bench/data_memory.py --rows 1000000 --output results/data_memory.json

Each command runs in a process of its own on synthetic records of two new pictures each; memory is the peak of that
process, libraries included, and seconds are its CPU time. `check` is told what its pictures look like, and `distill`
what its teacher says: opening pictures and waiting take nearly all the time of a real run, and no memory that grows.
For `distill` and `export` (into a format that names pictures by their paths) all rows share two real pictures. Rows are
drawn in groups of four with one caption, so that `split` has groups to find. Sizes of earlier runs into the same file
stay. A further row costs the difference of the peaks of the two largest sizes, divided by that of the rows; below a
part (20,000 rows) and a full cache of the database, peaks still rise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

RECORDS = """
import sys
from pathlib import Path
from PIL import Image
from unifiedreward_think.data.shards import PART_ROWS, Part, ShardFolder
from unifiedreward_think.records import PreferenceRecord, Trace

def row(i):
    names = (("a.png",), ("b.png",)) if shared else ((f"media/{i}-a.png",), (f"media/{i}-b.png",))
    prompt = f"a red kite over lake number {i // 4}, oil on canvas, late afternoon light"
    return Trace(record=PreferenceRecord(id=f"kites-{i}", task="image_generation", prompt=prompt, media=names,
                                         preferred=1 + i % 2, source="kites", group=str(i // 4)))

folder, rows, shared = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "shared"
shards = ShardFolder(folder, {"rows": rows})
for name in ("a", "b"):
    Image.new("RGB", (32, 32), name == "a" and "red" or "blue").save(folder / f"{name}.png")
for start in range(0, rows, PART_ROWS):
    part = Part(rows=[row(i) for i in range(start, min(rows, start + PART_ROWS))])
    shards.write(part, len(part.rows))
shards.finish({})
"""
SPLIT = """
from unifiedreward_think.data.curation.split import main
main(["--input", folder, "--output", output])
"""
CHECK = """
import hashlib
from unifiedreward_think.data.curation import check
from unifiedreward_think.data.curation.fingerprints import Fingerprint

def made_up(paths, kind, sampling):
    found = hashlib.sha256(paths[0].encode()).hexdigest()
    return Fingerprint(found, found[:16], 512, 512)

check.fingerprint = made_up
check.main(["--input", folder, "--output", output])
"""
DISTILL = """
from pathlib import Path
from unifiedreward_think.backends import Completion
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.traces.distillation import distill
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.verdict import render

class Teacher:
    model, batch_size, settings, spent = "made up", 64, {}, 0.0

    def complete(self, prompts, *, sampling, seeds):
        said = render(1, [("Aesthetics", 9, 4), ("Semantic consistency", 8, 7)], noun="Image")
        return [[Completion(said, "stop")] for _ in prompts]

protocol = JudgingConfig(prompts=load_prompts("cot"), style="cot", sampling=Sampling(),
                    frames=FrameSampling(frames=8, cache=Path(output, "frames")))
Path(output).mkdir()
distill((row.record for _, _, row in read_stored([Path(folder)])), Teacher(), protocol, Path(output))
"""
EXPORT = """
from unifiedreward_think.data.exporting import main
main(["--input", folder, "--format", "released-grpo", "--output", output])
"""
COMMANDS = {"split": SPLIT, "check": CHECK, "export": EXPORT, "distill": DISTILL}
BEGIN = "import sys\nfolder, output = sys.argv[1:]\n"
REPORT = """
import json, resource, time
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print("\\n" + json.dumps({"peak_mib": round(peak, 1), "cpu_seconds": round(time.process_time(), 1)}))
"""


def measure(command, rows):
    """Run a command on `rows` records in a process of its own and return its peak of memory and its CPU time."""
    with tempfile.TemporaryDirectory() as root:
        records, output = Path(root, "records"), Path(root, "output")
        shared = "shared" if command in ("distill", "export") else "own"
        subprocess.run([sys.executable, "-c", RECORDS, str(records), str(rows), shared], check=True)
        run = [sys.executable, "-c", BEGIN + COMMANDS[command] + REPORT, str(records), str(output)]
        said = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
        return {"rows": rows, **json.loads(said.splitlines()[-1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="which to measure")
    parser.add_argument("--rows", type=int, default=1_000_000, help="the larger of the two sizes, at least 10")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write; what else is in it stays")
    args = parser.parse_args()
    result = json.loads(args.output.read_bytes()) if args.output.is_file() else {}
    for command in args.commands:
        runs = {run["rows"]: run for run in result.get(command, {}).get("runs", [])}
        runs |= {rows: measure(command, rows) for rows in (args.rows // 10, args.rows)}
        before, last = (runs[rows] for rows in sorted(runs)[-2:])
        growth = (last["peak_mib"] - before["peak_mib"]) * 2**20 / (last["rows"] - before["rows"])
        versions = {name: metadata.version(name) for name in ("numpy", "pyarrow", "scipy")}
        found = {"runs": [runs[rows] for rows in sorted(runs)], "bytes_a_further_row": round(growth)}
        result[command] = {**found, "versions": versions}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(command, json.dumps(result[command]))


if __name__ == "__main__":
    main()
