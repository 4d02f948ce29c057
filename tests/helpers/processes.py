"""Commands that tests start: environment, output, free ports."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

REPO = Path(__file__).parents[2]


PATIENCE = 600  # seconds for one launch, most of it imports


def environment():
    """For a process of its own: this checkout's package, this interpreter's commands first."""
    paths = [str(REPO / "src"), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": path, "DS_ACCELERATOR": "cpu"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def started(command, **more):
    """A launch, whose processes do not outlive the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environ = {**environment(), **more}
    launch = subprocess.Popen(list(map(str, command)), cwd=REPO, env=environ, **pipes)
    try:
        yield launch
    finally:
        if launch.poll() is None:
            for process in [*psutil.Process(launch.pid).children(recursive=True), launch]:
                process.kill()


def checked(command, *nodes, fails=False, **more):
    """Run a command, or the same command as each of some nodes, and expect success, or failure; return what it said."""
    with ExitStack() as stack, ThreadPoolExecutor() as readers:  # no launch waits for another one's output to be read
        launches = [stack.enter_context(started(command, **more, **node)) for node in nodes or ({},)]
        said = list(readers.map(lambda launch: launch.communicate(timeout=PATIENCE)[0], launches))
        ends = [bool(launch.returncode) for launch in launches]
    assert ends == [fails] * len(launches), "".join(text[-6000:] for text in said)
    return "".join(said)


def forked(folder, *arguments):
    """Run a script that forks stages; torch must be unused in the process that forks, so not this one."""
    environ = {**os.environ, "PYTHONPATH": f"{REPO / 'src'}{os.pathsep}{REPO / 'scripts' / 'bench'}"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, env=environ, capture_output=True, text=True, timeout=580, check=False)
    logs = "".join(file.read_text()[-3000:] for file in folder.rglob("*.log"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    return done.stdout
