"""Ctrl-C ends every command in one line that says what is kept and how to go on, with status 130 and no traceback."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.processes import environment, free_port
from helpers.servers import serving
from unifiedreward_think.interrupts import GO_ON, INTERRUPTED, SCRIPTS, kept, one_line

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unifiedreward_think"
JUDGE = PACKAGE / "toy" / "judge"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
)
PROGRAMS = sorted(str(path.relative_to(ROOT)) for folder in SCRIPTS for path in (ROOT / folder).glob("*.py"))
# Ctrl-C while a module is imported.
AT_IMPORT = """
import os, signal, sys

class AtImport:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtImport)
"""


@pytest.fixture(autouse=True)
def in_front():
    """A shell lets what it starts in the background ignore Ctrl-C, as .ci/run these tests, and what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def end(work):
    """The line and the status of a block that `work` is done in."""
    lines = []
    with pytest.raises(SystemExit) as stopped, one_line(lines.append):
        work()
    (line,) = lines
    return line, stopped.value.code


def test_the_line_says_what_is_kept():
    def work():
        with kept(lambda: "three judgments"):
            press()

    assert end(work) == ("interrupted: three judgments", INTERRUPTED)


def turned_into_another_error():
    try:
        press()
    except KeyboardInterrupt as stop:
        raise ImportError("initialization failed") from stop


def swallowed():
    with contextlib.suppress(KeyboardInterrupt):
        press()


@pytest.mark.parametrize("library", [turned_into_another_error, swallowed])
def test_it_is_the_same_whatever_a_library_makes_of_it(library):
    assert end(library) == (f"interrupted: {GO_ON}", INTERRUPTED)


def test_a_second_one_ends_the_process_and_other_errors_stay_themselves():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="a bug"), one_line(print):
        raise ValueError("a bug")
    assert signal.getsignal(signal.SIGINT) is before
    try:
        with pytest.raises(SystemExit), one_line(lambda line: None):
            press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_job_in_the_background_goes_on():
    code = "import signal; from unifiedreward_think.entry import run_main; "
    code += "run_main(lambda: (signal.raise_signal(signal.SIGINT), print('done')))"
    ignoring = f"trap '' INT; exec {sys.executable} -c \"{code}\""
    done = subprocess.run(["bash", "-c", ignoring], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "done\n" and not done.stderr


def test_a_program_of_others_that_imports_us_keeps_its_own_ways(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import unifiedreward_think\n")
    (tmp_path / "other" / "__main__.py").write_text("import signal; signal.raise_signal(signal.SIGINT)\n")
    command = [sys.executable, "-m", "other"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT and done.stderr.endswith("KeyboardInterrupt\n")


@pytest.fixture
def at_import(tmp_path):
    """Run a command that gets a SIGINT while it imports a module; return its status and what it said."""
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)

    def run(name, *command):
        environ = environment()
        environ |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environ['PYTHONPATH']}", "INTERRUPTED_AT": name}
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("command", [f"-m {name}" for name in MODULES] + PROGRAMS)
def test_a_command_that_is_just_starting_ends_in_one_line(command, at_import):
    assert at_import("unifiedreward_think.errors", *command.split()) == (INTERRUPTED, f"interrupted: {GO_ON}\n")


@pytest.mark.parametrize(
    "name",
    [
        *("unifiedreward_think.judging.settings", "PIL.Image", "torch"),
        pytest.param("transformers.modeling_utils", marks=pytest.mark.slow),
    ],
)
def test_one_that_loads_its_libraries_too(name, at_import, tmp_path):
    words = ["--model", JUDGE, "--prompt", "a red circle", "--media", *[ROOT / "docs" / "judgment.png"] * 2]
    status, said = at_import(name, "inference/image_generation.py", *words)
    assert (status, said.splitlines()[-1:]) == (INTERRUPTED, [f"interrupted: {GO_ON}"])
    assert "Traceback" not in said


def interrupted(command, when, folder, **more):
    """Start a command, press Ctrl-C as soon as `when(what it said)`, and return what it said."""
    log = folder / f"{time.monotonic_ns()}.txt"
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, env={**environment(), **more}, stdout=file, stderr=file
        )
        try:
            while not when(log.read_text()):
                assert child.poll() is None, log.read_text()
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            assert child.wait(300) == INTERRUPTED, log.read_text()
        finally:
            child.kill()
            child.wait()
    said = log.read_text()
    assert "Traceback" not in said and said.count("interrupted: ") == 1
    return said.splitlines()[-1]


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_inference_keeps_what_it_judged_and_goes_on(toy_world, tmp_path):
    output = tmp_path / "judgments.jsonl"
    command = ["inference/image_generation.py", "--model", JUDGE, "--input", toy_world / "heldout.jsonl"]
    command += ["--output", output, "--prompts", ROOT / "configs/toy/prompts", "--frames", 4, "--batch-size", 1]
    command += ["--max-new-tokens", 192]
    said = interrupted(command, lambda _: lines(output), tmp_path)
    assert said == f"interrupted: what was judged is in {output}; the same command goes on after it"
    before = lines(output)
    assert 0 < len(before) < 40 and not (tmp_path / "judgments.jsonl.in_use").exists()
    command[command.index("--batch-size") + 1] = 64
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment(), check=True)
    assert lines(output)[: len(before)] == before and len(lines(output)) == 40


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_not_waited_for(toy_world, tmp_path):
    with serving(lambda body, nth: time.sleep(600)) as server:
        command = ["-m", "unifiedreward_think.evaluation", "--input", toy_world / "heldout.jsonl", "--limit", 4]
        command += ["--backend", "server", "--server", server.url, "--model", "judge", "--output", tmp_path / "out"]
        began = time.monotonic()
        said = interrupted(command, lambda _: server.bodies, tmp_path)
    assert "the same command goes on" in said and time.monotonic() - began < 200


def test_an_import_keeps_its_parts(tmp_path):
    one = {"image_a": "a.png", "image_b": "b.png", "winner": "a"}
    rows = [json.dumps({**one, "prompt": f"number {i}"}) + "\n" for i in range(20_000)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    output = tmp_path / "out"
    command = [
        "-m",
        "unifiedreward_think.data",
        "import",
        "--source",
        ROOT / "configs/data/own_data.yaml",
        "--input",
        tmp_path / "rows.jsonl",
    ]
    said = interrupted(
        [*command, "--output", output, "--part-rows", 20], lambda _: (output / "part-00001.json").exists(), tmp_path
    )
    assert said == f"interrupted: whole parts are kept in {output}; the same command goes on after them"
    assert not (output / ".in_use").exists()


@pytest.mark.slow
def test_training_names_the_checkpoint_it_goes_on_from(models, toy_data, tmp_path):
    output = tmp_path / "out"
    options = {"config": "configs/toy/cold_start.yaml", "model_name_or_path": models["qwen2_5_vl"]}
    options |= {"train_files": toy_data / "cold_start.jsonl", "frame_cache": toy_data / "frames", "frames": 4}
    options |= {"output_dir": output, "max_steps": 1000, "save_strategy": "steps", "save_steps": 1}
    words = [part for key, value in options.items() for part in (f"--{key}", value)]
    sealed = output / "checkpoint-2" / "complete.json"
    said = interrupted(["-m", "unifiedreward_think.training.sft", *words], lambda _: sealed.exists(), tmp_path)
    assert said.startswith("interrupted: step ") and f"the same command goes on from {output}/checkpoint-" in said
    assert not (output / ".in_use").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "up", "says"),
    [
        (["-m", "unifiedreward_think.serving", "--model", JUDGE, "--port"], "Uvicorn running", "serves again"),
        (["gradio/app.py", "--toy", "--port"], "Running on local URL", "shows the page again"),
    ],
    ids=["server", "demo"],
)
def test_what_serves_says_how_to_serve_again(command, up, says, tmp_path):
    said = interrupted([*command, free_port()], lambda said: up in said, tmp_path, PYTHONUNBUFFERED="1")
    assert said.startswith("interrupted: ") and said.endswith(says)


@pytest.mark.slow
def test_of_two_ranks_one_speaks(models, toy_data, tmp_path):
    output, port = tmp_path / "out", free_port()
    options = {"config": "configs/toy/rejection_sampling.yaml", "model_name_or_path": models["qwen2_5_vl"]}
    options |= {"train_files": toy_data / "train.jsonl", "frame_cache": toy_data / "frames", "output_dir": output}
    options |= {"samples": 4, "max_new_tokens": 2000, "batch_size": 1, "frames": 4}
    words = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    launch = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "unifiedreward_think.training.rejection_sampling", *words],
            **{"cwd": ROOT, "env": {**environment(), **launch, "RANK": number, "LOCAL_RANK": number}},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        )
        for number in "01"
    ]
    try:
        while not all((output / f"judgments.jsonl.rank{number}").exists() for number in "01"):
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.05)
        for rank in ranks:
            rank.send_signal(signal.SIGINT)
        said = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [INTERRUPTED, INTERRUPTED], said
    assert said[0].splitlines()[-1].startswith("interrupted: what was judged is in ")
    assert "interrupted" not in said[1] and "Traceback" not in "".join(said)
