"""How fast and how flat the import is, against `pandas.read_json` and a loop over its rows, in one run.

    OMP_NUM_THREADS=1 python scripts/bench/data_import.py --output outputs/bench/data_import.json

Both read the same synthetic file of the HPD v2 layout (a JSON list, media not decoded) and work out the same thing for
every row: who is preferred, and whether both pictures exist. The import also draws the order, checks the texts, writes
parquet parts with their hashes, and hashes its input. Each round runs both in processes of their own, in turn; seconds
are CPU time of the process, imports of libraries left out; memory is its peak. The file is also cut to a tenth, to show
what a longer file adds to the peak.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median

from unifiedreward_think.writing import write_whole

IMPORT = """
import json, resource, sys, time
from pathlib import Path
import pyarrow.parquet
from unifiedreward_think.data.importing import Settings, expand, import_source
from unifiedreward_think.data.sources.declaration import load_source
file, folder = sys.argv[1:]
started = time.process_time()
manifest = import_source(load_source("hpdv2_train"), expand([file], None), Path(folder), Settings(renamed={}))
seconds = time.process_time() - started
rows, first = manifest["counts"]["kept"], manifest["counts"]["preferred first as found"]["hpdv2_train"]
"""
PANDAS = """
import json, resource, sys, time
from pathlib import Path
import pandas
file, folder = sys.argv[1:]
started = time.process_time()
rows = first = 0
for _, row in pandas.read_json(file).iterrows():
    if all(Path(file).parent.joinpath("train", name).exists() for name in row["file_path"]):
        rows += 1
        first += row["human_preference"] == [1, 0]
seconds = time.process_time() - started
"""
REPORT = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"rows": rows, "first": first, "seconds": seconds, "peak_mib": peak / 1024}))
"""


def write_rows(path, count):
    """Write a file of the HPD v2 layout whose pictures exist as empty files."""
    folder = path.parent / "train"
    folder.mkdir(exist_ok=True)
    for i in range(100):
        (folder / f"{i:08d}.jpg").touch()
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for i in range(count):
            row = {
                "human_preference": [1, 0] if i % 3 else [0, 1],
                "prompt": f"a red kite over lake number {i // 4}, oil on canvas, late afternoon light",
                "file_path": [f"{i % 100:08d}.jpg", f"{(7 * i + 1) % 100:08d}.jpg"],
            }
            file.write((",\n" if i else "") + json.dumps(row))
        file.write("]")


def measure(code, file):
    """Run `code` on a file in a process of its own and return what it reports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code + REPORT, str(file), folder]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the synthetic file")
    parser.add_argument("--rounds", type=int, default=1, help="of each of the two, in turn")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth = Path(folder, "train.json"), Path(folder, "tenth.json")
        write_rows(whole, args.rows)
        write_rows(tenth, args.rows // 10)
        size = whole.stat().st_size
        rounds = [{"import": measure(IMPORT, whole), "pandas": measure(PANDAS, whole)} for _ in range(args.rounds)]
        short = {"import": measure(IMPORT, tenth), "pandas": measure(PANDAS, tenth)}
    answers = {(found["rows"], found["first"]) for done in rounds for found in done.values()}
    if len(answers) > 1:
        raise SystemExit(f"error: the two disagree: {answers}")
    speed = {name: args.rows / median(done[name]["seconds"] for done in rounds) for name in ("import", "pandas")}
    result = {
        "rows": args.rows,
        "megabytes": round(size / 1e6, 1),
        "rows_per_cpu_second": {name: round(value) for name, value in speed.items()},
        "import_over_pandas": round(speed["import"] / speed["pandas"], 2),
        "peak_mib": {name: round(max(done[name]["peak_mib"] for done in rounds)) for name in speed},
        "peak_mib_of_a_tenth": {name: round(found["peak_mib"]) for name, found in short.items()},
        "versions": {name: metadata.version(name) for name in ("pyarrow", "pandas")},
        "rounds": rounds,
    }
    write_whole(args.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
