"""Kill every stage at random moments, start it again, and compare with a run that nobody killed.

    nice python scripts/bench/kills.py --output results/survival.json          # 230 kills
    nice python scripts/bench/kills.py --kills 1 --stages sft judging --output /tmp/kills.json

Each stage runs its real main function on a tiny random model, in a process forked from this one, which has imported the
libraries and done nothing else. A kill is SIGKILL, or for the training stages on one process every third time SIGTERM
at any moment from the start of the process to the end of an undisturbed run. The same command then starts again, is killed
again, and so on. A kill is survived if the run it belongs to ends with the results of the undisturbed run: weights,
sampled traces and imported files byte for byte, every judgment exactly once, and for two ranks the logged values. On two
ranks one of them is killed, and the other must end by itself.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from unifiedreward_think.writing import write_whole

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

REPO = Path(__file__).parents[2]
PROMPTS = REPO / "configs" / "toy" / "prompts"
KILLS = {
    **{"sft": 40, "grpo": 40, "grpo_stock": 30, "rejection_sampling": 35, "judging": 35},
    **{"import": 25, "split": 15, "sft_2_ranks": 5, "grpo_2_ranks": 5},
}
PATIENCE = 300  # seconds after which a process counts as hanging
STEPS = 6
CLOCK = ("time", "_per_second", "step_time")  # logged values that differ from run to run


@dataclass
class Stage:
    """A command, what it leaves behind, and how often it was killed."""

    name: str
    module: str
    arguments: list
    results: object  # output folder -> what must be the same
    ranks: int = 1
    asks: bool = False  # SIGTERM saves and ends with status 0
    killed: int = 0
    survived: int = 0
    runs: int = 0
    asked: int = 0
    problems: list = field(default_factory=list)
    half_written: int = 0  # kills that left a checkpoint without its seal
    at: list = field(default_factory=list)  # share of the undisturbed time at each kill


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained(folder):
    assert json.loads((folder / "run.json").read_text())["finished"]
    return {"weights": sha256(folder / "model.safetensors")}


def logged(folder):
    rows = json.loads((folder / "log_history.json").read_text())
    return [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in rows if "loss" in row]


def judged(folder):
    """Every line of judgments.jsonl without its time: a lost or doubled one shows."""
    rows = [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]
    keys = [(row["record_id"], row["order"], row["sample"]) for row in rows]
    return {"judgments": len(keys), "doubled": len(keys) - len(set(keys)), "rows": [{**r, "seconds": 0} for r in rows]}


def sampled(folder):
    return {**judged(folder), "kept": sha256(folder / "kept.jsonl"), "hard": sha256(folder / "hard.jsonl")}


def evaluated(folder):
    return {**judged(folder), "results": (folder / "results.json").exists()}


def imported(folder):
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def make_inputs(root):
    """Draw a toy world, a random model, and pairs to import."""
    from PIL import Image

    from unifiedreward_think.models import tiny
    from unifiedreward_think.tasks import load_prompts
    from unifiedreward_think.toy import dataset

    dataset.write(root / "toy", cold_start=8, train=12, heldout=8)
    tiny.build("qwen2_5_vl", root / "model", corpus=load_prompts("cot", folder=PROMPTS).values())
    (root / "pairs").mkdir()
    rows = []
    for i in range(1500):
        names = [f"{i}-{side}.png" for side in "ab"]
        for k, name in enumerate(names if i < 100 else ()):
            Image.new("RGB", (8, 8), (i, k * 99, 0)).save(root / "pairs" / name)
        names = [f"{i % 100}-{side}.png" for side in "ab"]
        rows.append({"prompt": f"picture {i}", "image_a": names[0], "image_b": names[1], "winner": "ab"[i % 2]})
    write_whole(root / "pairs" / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def stages(root):
    """Return all stages, their arguments without the output folder."""
    toy, model = root / "toy", root / "model"
    common = {"prompt_dir": PROMPTS, "frames": 4, "frame_cache": root / "frames", "dtype": "float32"}
    training = {
        **common,
        **{"model_name_or_path": model, "limit": 4, "use_cpu": "true", "bf16": "false", "report_to": "none"},
        **{"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "logging_steps": 1},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3},
        **{"lr_scheduler_type": "cosine", "activation_checkpointing": "false", "disable_tqdm": "true"},
    }
    sft = {**training, "max_length": "null", "train_files": toy / "cold_start.jsonl"}
    grpo = {**training, "train_files": toy / "train.jsonl", "num_generations": 2, "beta": 0.04}
    grpo |= {"max_completion_length": 8, "reward_funcs": "bench_rewards.mean_token"}
    sampling = {**common, "model_name_or_path": model, "train_files": toy / "train.jsonl", "samples": 2}
    sampling |= {"max_new_tokens": 6, "batch_size": 2, "require_correct": "false", "require_strict": "false"}
    judging = ["--model", model, "--data", toy / "train.jsonl", "--orders", "both", "--prompt-dir", PROMPTS, "--frames"]
    judging += [
        "4",
        "--frame-cache",
        root / "frames",
        "--dtype",
        "float32",
        "--max-new-tokens",
        "6",
        "--batch-size",
        "2",
    ]
    reading = ["import", "--source", REPO / "configs/data/own_data.yaml", "--input", root / "pairs/pairs.jsonl"]
    training_module, data = "unifiedreward_think.training.{}", "unifiedreward_think.data.__main__"
    two = {"gradient_accumulation_steps": 1}
    found = [
        Stage("sft", training_module.format("sft"), flags(sft), trained, asks=True),
        Stage("grpo", training_module.format("grpo"), flags(grpo), trained, asks=True),
        Stage(
            "grpo_stock", training_module.format("grpo"), flags({**grpo, "shared_prefix": "false"}), trained, asks=True
        ),
        Stage("rejection_sampling", training_module.format("rejection_sampling"), flags(sampling), sampled),
        Stage("judging", "unifiedreward_think.evaluation.__main__", judging, evaluated),
        Stage("import", data, [*reading, "--part-rows", "50"], imported),
        Stage("split", data, ["split", "--input", root / "undisturbed" / "import"], imported),
        Stage("sft_2_ranks", training_module.format("sft"), flags({**sft, **two}), logged, ranks=2),
        Stage("grpo_2_ranks", training_module.format("grpo"), flags({**grpo, **two}), logged, ranks=2),
    ]
    return {stage.name: stage for stage in found}


def flags(options):
    return [part for key, value in options.items() for part in (f"--{key}", value)]


def start(stage, output, log):
    """Fork the processes of a stage and return their ids."""
    option = "--output" if stage.module.endswith("__main__") else "--output_dir"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [fork(stage, [*stage.arguments, option, output], rank, port, log) for rank in range(stage.ranks)]


def fork(stage, arguments, rank, port, log):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if stage.ranks > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": stage.ranks, "LOCAL_WORLD_SIZE": stage.ranks}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in names.items()})
        sys.argv = [stage.module, *map(str, arguments)]
        status = run_stage(stage.module)
    finally:
        os._exit(status)


def run_stage(module):
    """Run a stage as `python -m` does, and return the status of the process."""
    import runpy
    import traceback

    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            print(stop.code)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def wait(pids, until=None):
    """Return the statuses of processes that end before the moment `until`, None for the others."""
    statuses = dict.fromkeys(pids)
    while None in statuses.values() and (until is None or time.monotonic() < until):
        for pid in [pid for pid, status in statuses.items() if status is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return list(statuses.values())


def end(pids):
    """Kill processes that are still there."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def kill_once(stage, output, log, chance, seconds):
    """Start the stage and kill it at a random moment. Return whether it has finished."""
    pids = start(stage, output, log)
    began, moment = time.monotonic(), chance.uniform(0, seconds)
    statuses = wait(pids, began + moment)
    if all(status == 0 for status in statuses):
        return True  # it was faster than the kill
    if any(status is not None for status in statuses):
        stage.problems.append(f"ended by itself with {statuses}, see {log}")
        end([pid for pid, status in zip(pids, statuses, strict=True) if status is None])
        return True
    asking = stage.asks and stage.killed % 3 == 2
    victim = chance.choice(pids)
    os.kill(victim, signal.SIGTERM if asking else signal.SIGKILL)
    stage.killed += 1
    stage.asked += asking
    stage.at.append(round(moment / seconds, 3))
    statuses = wait(pids, time.monotonic() + PATIENCE)
    if None in statuses:
        stage.problems.append(f"{statuses.count(None)} processes hang after a kill, see {log}")
        end([pid for pid, status in zip(pids, statuses, strict=True) if status is None])
    if asking and statuses[0] not in (0, -signal.SIGTERM):  # before it listens, the signal just ends it
        stage.problems.append(f"SIGTERM ended it with {statuses[0]}, see {log}")
    stage.half_written += any(not (path / "complete.json").exists() for path in output.glob("checkpoint-*"))
    return False


def torment(stage, root, kills, chance):
    """Run the stage undisturbed once, then kill it `kills` times over as many runs as that takes."""
    log = root / f"{stage.name}.log"
    undisturbed = root / "undisturbed" / stage.name
    began = time.monotonic()
    statuses = wait(start(stage, undisturbed, log), began + PATIENCE)
    assert set(statuses) == {0}, f"{stage.name} fails undisturbed with {statuses}:\n{log.read_text()[-3000:]}"
    seconds, expected = time.monotonic() - began, stage.results(undisturbed)
    while stage.killed < kills:
        output, before = root / "killed" / f"{stage.name}-{stage.runs}", stage.killed
        stage.runs += 1
        while stage.killed < kills and not kill_once(stage, output, log, chance, seconds):
            pass
        statuses = wait(start(stage, output, log), time.monotonic() + PATIENCE)
        same = set(statuses) == {0} and stage.results(output) == expected
        stage.survived += (stage.killed - before) * same
        if not same:
            stage.problems.append(f"run {stage.runs - 1} ended with {statuses} and other results, see {output}")
        print(f"{stage.name}: {stage.survived} of {stage.killed} kills survived, {stage.problems}", flush=True)
    lost = doubled = 0
    if "judgments" in expected:
        found = [stage.results(root / "killed" / f"{stage.name}-{run}") for run in range(stage.runs)]
        lost = sum(max(0, expected["judgments"] - one["judgments"] + one["doubled"]) for one in found)
        doubled = sum(one["doubled"] for one in found)
    return {
        **{"kills": stage.killed, "by SIGTERM": stage.asked, "survived": stage.survived, "runs": stage.runs},
        **{"kills that left a half-written checkpoint": stage.half_written, "undisturbed seconds": round(seconds, 2)},
        **{"judgments lost": lost, "judgments doubled": doubled, "problems": stage.problems, "moments": stage.at},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help=f"of each stage (default: {KILLS})")
    parser.add_argument("--stages", nargs="+", choices=list(KILLS), default=list(KILLS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="folder that keeps runs and logs (default: a temporary one)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the counts")
    args = parser.parse_args()
    import transformers  # noqa: F401 - every forked process has them then
    import trl  # noqa: F401
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    from unifiedreward_think.provenance import provenance
    from unifiedreward_think.training import faults, shared_prefix_trainer  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.work or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        maker = os.fork()  # torch must not have computed anything in the process that is forked
        if not maker:
            make_inputs(root)
            os._exit(0)
        assert wait([maker]) == [0], "the inputs could not be made"
        known, found = stages(root), {}
        for name in args.stages:
            if name == "split" and "import" not in args.stages:
                assert wait(start(known["import"], root / "undisturbed" / "import", root / "import.log")) == [0]
            found[name] = torment(known[name], root, args.kills or KILLS[name], random.Random(f"{args.seed} {name}"))
            report = {"command": " ".join(["python", *sys.argv]), "seed": args.seed, "steps of a training run": STEPS}
            keys = ("kills", "survived", "judgments lost", "judgments doubled")
            report |= {"total": {key: sum(row[key] for row in found.values()) for key in keys}, "stages": found}
            write_whole(args.output, json.dumps({**report, **provenance()}, indent=1) + "\n")
    print(json.dumps(report["total"]))
    raise SystemExit(
        int(report["total"]["kills"] != report["total"]["survived"] or any(s.problems for s in known.values()))
    )


if __name__ == "__main__":
    main()
