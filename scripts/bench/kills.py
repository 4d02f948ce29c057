"""Kill every stage at random moments, start it again, and compare with a run that nobody killed.

    nice python scripts/bench/kills.py --output results/survival.json          # 208 kills
    nice python scripts/bench/kills.py --kills 1 --stages sft judging --output /tmp/kills.json

Each stage runs its real main function on a tiny random model, in a process forked from this one, which has imported the
libraries and done nothing else. A kill is SIGKILL, or every third time for the training stages on one process SIGTERM,
when the process has used a random share of the processor time of an undisturbed run. The same command then starts
again, is killed again, and so on. A kill is survived if the run it belongs to ends with the results of the undisturbed
run: weights, sampled traces and imported files byte for byte, every judgment exactly once, and for two ranks the logged
values. On two ranks one of them is killed, and the other must end by itself.
"""

import argparse
import importlib
import json
import os
import random
import resource
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from kill_stages import STEPS, make_inputs, make_pairs, stages

from unifiedreward_think.provenance import provenance
from unifiedreward_think.writing import write_whole

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

KILLS = {
    **{"import": 40, "split": 30, "judging": 32, "rejection_sampling": 32},
    **{"sft": 26, "grpo": 26, "grpo_stock": 16, "sft_2_ranks": 3, "grpo_2_ranks": 3},
}
PATIENCE = 240  # seconds after which a process counts as hanging


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
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)  # dataclasses look for their module
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def make_apart(*makers: Callable[[], object]) -> None:
    """Make inputs in a child: torch must not have computed anything in the process whose children are the stages."""
    pid = os.fork()
    if not pid:
        for make in makers:
            make()
        os._exit(0)
    assert wait([pid]) == [0], "the inputs could not be made"


def wait(pids):
    """Return the statuses of processes; None, and a kill, for those that do not end."""
    statuses, began = dict.fromkeys(pids), time.monotonic()
    while left := [pid for pid, status in statuses.items() if status is None]:
        if time.monotonic() > began + PATIENCE:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            break
        for pid in left:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return list(statuses.values())


def looked_at(pid):
    """Return whether a process has ended, and the processor time it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0] == "Z", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_once(stage, output, log, chance):
    """Start the stage and kill it at a random moment. Return whether it ended before."""
    pids = start(stage, output, log)
    victim, share = chance.choice(pids), chance.random()
    ended = False
    while not ended and looked_at(victim)[1] < share * stage.seconds:
        time.sleep(0.01)
        ended = any(looked_at(pid)[0] for pid in pids)
    if ended:
        if set(statuses := wait(pids)) != {0}:
            stage.problems.append(f"ended by itself with {statuses}, see {log}")
        return True
    asking = stage.asks and stage.killed % 3 == 2
    os.kill(victim, signal.SIGTERM if asking else signal.SIGKILL)
    stage.killed += 1
    stage.asked += asking
    stage.moments.append(round(share, 3))
    statuses = wait(pids)
    if None in statuses:
        stage.problems.append(f"{statuses.count(None)} processes hang after a kill, see {log}")
    if asking and statuses[0] not in (0, -signal.SIGTERM):  # before it listens, the signal just ends it
        stage.problems.append(f"SIGTERM ended it with {statuses[0]}, see {log}")
    stage.half_written += any(not (path / "complete.json").exists() for path in output.glob("checkpoint-*"))
    return False


def undisturbed(stage, root):
    """Run the stage once without a kill: what it leaves is expected of the others."""
    output, log = root / "undisturbed" / stage.name, root / f"{stage.name}.log"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    statuses = wait(start(stage, output, log))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert set(statuses) == {0}, f"{stage.name} fails undisturbed with {statuses}:\n{log.read_text()[-3000:]}"
    stage.seconds = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / stage.ranks
    stage.expected = stage.results(output)


def torment(stage, root, kills, chance):
    """Kill one run of the stage until it ends by itself, and compare what it leaves."""
    if stage.expected is None:
        undisturbed(stage, root)
    output, log, before = root / "killed" / f"{stage.name}-{stage.runs}", root / f"{stage.name}.log", stage.killed
    while stage.killed < kills and not kill_once(stage, output, log, chance):
        pass
    statuses = wait(start(stage, output, log))
    found = stage.results(output) if set(statuses) == {0} else None
    stage.survived += (stage.killed - before) * (found == stage.expected)
    if found != stage.expected:
        stage.problems.append(f"run {stage.runs} ended with {statuses} and other results, see {output}")
    stage.runs += 1
    stage.finished.append(found)
    print(f"{stage.name}: {stage.survived} of {stage.killed} kills survived {stage.problems or ''}", flush=True)


def row(stage):
    """Return what is reported of a stage."""
    found = [results for results in stage.finished if isinstance(results, dict) and "judgments" in results]
    return {
        **{"kills": stage.killed, "by SIGTERM": stage.asked, "survived": stage.survived, "runs": stage.runs},
        "runs with the results of the undisturbed one": sum(one == stage.expected for one in stage.finished),
        "judgments lost": sum(stage.expected["judgments"] - (one["judgments"] - one["doubled"]) for one in found),
        "judgments doubled": sum(one["doubled"] for one in found),
        "kills that left a half-written checkpoint": stage.half_written,
        "processor seconds undisturbed": round(stage.seconds, 2),
        "problems": stage.problems,
        "share of the run at each kill": stage.moments,
    }


def preload():
    """Import what the stages would import while they run, or each forked process would spend seconds on it again."""
    for name in (
        *("deepspeed", "peft", "pandas", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp"),
        *("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl"),
        *("transformers.models.qwen2_vl.image_processing_qwen2_vl", "transformers.generation.utils"),
        *(
            "unifiedreward_think.backends.transformers",
            "unifiedreward_think.models.tiny",
            "decord",
            "PIL.PngImagePlugin",
        ),
    ):
        importlib.import_module(name)


def report(known, seed):
    """Return the counts of all stages that have begun."""
    rows = {name: row(stage) for name, stage in known.items() if stage.runs}
    keys = ("kills", "survived", "runs", "runs with the results of the undisturbed one")
    total = {key: sum(each[key] for each in rows.values()) for key in (*keys, "judgments lost", "judgments doubled")}
    about = {"command": " ".join(["python", *sys.argv]), "seed": seed, "steps of a training run": STEPS}
    return {**about, "total": total, "stages": rows, **provenance()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help=f"of each stage (default: {KILLS})")
    parser.add_argument("--stages", nargs="+", choices=list(KILLS), default=list(KILLS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="folder that keeps runs and logs (default: a temporary one)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the counts")
    args = parser.parse_args()
    models = bool({*args.stages} - {"import", "split"})
    if models:
        from trl import GRPOTrainer, SFTTrainer  # noqa: F401 - every forked process has them then

        from unifiedreward_think.training.trainers import shared_prefix_grpo as shared_prefix_trainer  # noqa: F401

        preload()

    # No TemporaryDirectory: a rank runs what is registered for the end of a process, and a fork has that of its parent.
    root = (args.work or Path(tempfile.mkdtemp(prefix="kills-"))).absolute()
    root.mkdir(parents=True, exist_ok=True)
    make_apart(lambda: make_pairs(root / "pairs"), *([lambda: make_inputs(root)] if models else []))
    known = stages(root)
    if "split" in args.stages:
        undisturbed(known["import"], root)  # which it reads
    quota = {name: args.kills or KILLS[name] for name in args.stages}
    chances = {name: random.Random(f"{args.seed} {name}") for name in quota}
    while left := [name for name in quota if known[name].killed < quota[name]]:
        for name in left:  # in turns, so that a report that is cut short speaks of all of them
            torment(known[name], root, quota[name], chances[name])
            write_whole(args.output, json.dumps(report(known, args.seed), indent=1) + "\n")
    total = report(known, args.seed)["total"]
    print(json.dumps(total))
    failed = total["kills"] != total["survived"] or any(stage.problems for stage in known.values())
    if not failed and args.work is None:
        shutil.rmtree(root)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
