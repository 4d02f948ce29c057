"""Run the items of gpu.sh one after the other, each in a process with a time limit, and say at any time what there is.

    bash scripts/bench/gpu.sh --output outputs/gpu

Items come by what they are worth. What they measure goes into results.jsonl as it comes, with device, versions and
commit; an item that fails or runs out of time is written down as such, and the next one begins. table.md and the plots
are made anew after every item, so a run that is cut short leaves all it has measured.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import gpu_table

from unifiedreward_think.provenance import provenance
from unifiedreward_think.writing import write_whole

BENCH = Path(__file__).parent
LEAST = 20  # seconds: an item takes as long until it measures
QWEN2_5, QWEN3 = "qwen2_5_vl_3b", "qwen3_vl_2b"
PLAN = [  # item, model, most seconds; by value
    ("precision", QWEN2_5, 110),
    ("step", QWEN2_5, 130),
    ("policy", QWEN2_5, 60),
    ("decode", QWEN2_5, 70),
    ("long_step", QWEN2_5, 120),
    ("sft", QWEN2_5, 60),
    ("precision", QWEN3, 75),
    ("step", QWEN3, 120),
    ("flash_attention", QWEN2_5, 60),
    ("vllm", QWEN2_5, 150),
]
NEEDS = {"flash_attention": "flash_attn", "vllm": "vllm"}
PROBE = """
import json, torch
gpu = torch.cuda.is_available()
name = torch.cuda.get_device_name() if gpu else "no GPU"
memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if gpu else 0
print(json.dumps({"device": name, "memory_gib": round(memory, 1), "cuda": torch.version.cuda}))
"""


def machine(device):
    """Return what a result must name of the machine.

    Raises:
        SystemExit: a GPU is wanted and torch sees none.
    """
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise SystemExit(f"gpu.sh: torch does not work here:\n{probe.stderr}")
    found = json.loads(probe.stdout.splitlines()[-1])
    if device == "cpu":
        return {**found, "device": "CPU"}
    if found["device"] == "no GPU":
        raise SystemExit("gpu.sh: torch sees no GPU here; --size tiny --device cpu is a dry run")
    return found


def run(command, log, limit):
    """Run a command in a session of its own; return its exit status, None where the limit ended it."""
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also what it has started
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def outcome(status, log, limit):
    """Return what is written of an item that has ended."""
    if status == 0:
        return {"status": "done"}
    if status is None:
        return {"status": "timed out", "reason": f"after {limit:.0f} s"}
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return {"status": "failed", "reason": f"{how}, see {log.name}: {last.strip()[:200]}"}


def measure(item, model, limit, args):
    """Run an item and return what is written of it."""
    needed = NEEDS.get(item)
    if needed and importlib.util.find_spec(needed) is None:
        return {"status": "skipped", "reason": f"{needed} is not installed"}
    if limit < min(LEAST, args.limit.get(item, LEAST)):
        return {"status": "skipped", "reason": "no time left"}
    log = args.output / f"{item}_{model}.log"
    command = [
        sys.executable,
        BENCH / "gpu_items.py",
        item,
        "--model",
        model,
        "--results",
        args.output / "results.jsonl",
    ]
    started = time.monotonic()
    status = run([*map(str, command), "--size", args.size, "--device", args.device], log, limit)
    return {**outcome(status, log, limit), "wall_seconds": round(time.monotonic() - started, 1)}


def limits(words):
    """Read ITEM=SECONDS of the command line."""
    pairs = [word.partition("=") for word in words]
    return {item: float(seconds) for item, _, seconds in pairs}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    items = list(dict.fromkeys(item for item, _, _ in PLAN))
    add = parser.add_argument
    add("--output", type=Path, default=Path("outputs/gpu"), help="folder of results, table, plots and logs")
    add("--minutes", type=float, default=8, help="of the whole run; items that no longer fit are left out")
    add("--items", nargs="+", choices=items, default=items, help="what to measure")
    add("--models", nargs="+", choices=(QWEN2_5, QWEN3), default=[QWEN2_5, QWEN3], help="of which models")
    add("--limit", nargs="+", default=[], metavar="ITEM=SECONDS", help="other limits than those of PLAN")
    add("--size", choices=("real", "tiny"), default="real", help="tiny: two small layers and short texts")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="where it runs")
    args = parser.parse_args()
    args.limit = limits(args.limit)
    return args


def main():
    args = parse()
    end = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the item in progress ends, too
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / "results.jsonl"
    write_whole(results, json.dumps({"item": "machine", **machine(args.device), **provenance()}) + "\n")
    failed = False
    for item, model, most in PLAN:
        if item not in args.items or model not in args.models:
            continue
        most = args.limit.get(item, most if args.device == "cuda" else 60 * args.minutes)
        limit = min(most, end - time.monotonic())
        found = measure(item, model, limit, args)
        failed |= found["status"] in ("failed", "timed out")
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"item": item, "model": model, **found}) + "\n")
        print(f"{item} {model}: {found['status']} {found.get('reason', '')}", flush=True)
        gpu_table.write(args.output)
    print((args.output / "table.md").read_text(encoding="utf-8"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
