"""Two ranks that are asked to stop, go on as one process, or lose one of them; for test_faults, not a test file.

python tests/helpers/other_ranks.py FOLDER
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import kill_stages
import kills


def losses(folder):
    return [row["loss"] for row in kill_stages.logged(folder)]


def when(condition):
    while not condition():
        time.sleep(0.01)


def main(root):
    from trl import SFTTrainer  # noqa: F401 - the forked processes have it then

    kills.make_apart(lambda: kill_stages.make_inputs(root))
    two, one = (kill_stages.stages(root)[name] for name in ("sft_2_ranks", "sft"))
    kills.undisturbed(two, root)

    def first_checkpoint(output):
        return (output / "checkpoint-1" / "complete.json").exists()

    output, log = root / "asked", root / "asked.log"
    pids = kills.start(two, output, log)
    when(lambda: first_checkpoint(output))
    os.kill(pids[1], signal.SIGTERM)
    said = {"asked": kills.wait(pids)}
    said["one process"] = kills.wait(kills.start(one, output, log))  # twice the accumulation: as many rows a step
    said |= {"losses": losses(output), "undisturbed": losses(root / "undisturbed" / two.name)}

    output, log = root / "dead", root / "dead.log"
    pids = kills.start(two, output, log)
    when(lambda: first_checkpoint(output))
    os.kill(pids[1], signal.SIGKILL)
    said["one dead"] = kills.wait(pids)
    said["again"] = kills.wait(kills.start(two, output, log))
    said |= {"logged again": kill_stages.logged(output), "logged undisturbed": two.expected}
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
