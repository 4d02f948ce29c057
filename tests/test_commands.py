"""Every command that a document names is run here, or read by its own parser: helpers/documented.py says which way."""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from helpers import data_sources
from helpers.bench import need
from helpers.data import scripted
from helpers.documented import DOCUMENTS, PACKAGE, REPO, WAYS, ByTest, Parsed, Run, Script, commands, lines_of, prose
from helpers.processes import environment
from helpers.reward_server import LiveServer, Scores
from helpers.servers import serving
from unifiedreward_think.toy import dataset

JUDGE = "src/unifiedreward_think/toy/judge"
OURS = r"python (-m unifiedreward_think|inference/)"
RELEASED = "CodeGoat24/UnifiedReward-Think-qwen-7b"
STAGES = {f"unifiedreward_think.training.{name}" for name in ("sft", "grpo", "rejection_sampling")}
RECORDER = """#!/bin/sh
{ printf %s "$(basename "$0")"; [ $# -eq 0 ] || printf " '%s'" "$@"; echo; } >>"$CALLS"
"""


def ways(kind):
    return [command for command, way in WAYS.items() if isinstance(way, kind)]


def each(kind):
    return pytest.mark.parametrize("command", ways(kind), ids=lambda command: command[:70])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_has_a_way_to_be_run(document):
    assert [command for command in commands(document) if command not in WAYS] == []


def test_every_way_is_of_a_command_that_a_document_names():
    assert WAYS.keys() - {command for document in DOCUMENTS for command in commands(document)} == set()


@each(ByTest)
def test_the_test_that_runs_a_command_is_there(command):
    file, _, name = WAYS[command].where.partition("::")
    assert re.search(rf"^def {name}\(", (REPO / "tests" / file).read_text(encoding="utf-8"), flags=re.MULTILINE)


def lay_out(folder):
    """Make a folder that looks like a checkout after its data has come, with toy data for all."""
    for name in ("src", "scripts", "configs", "inference", "benchmark_evaluation", "gradio", "tests", "pyproject.toml"):
        (folder / name).symlink_to(REPO / name)
    for name, colour in {"a": (200, 30, 30), "b": (30, 30, 200)}.items():
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    data = folder / "data"
    dataset.write(data, cold_start=4, train=8, heldout=8)
    shutil.copy(data / "heldout.jsonl", data / "pairs.jsonl")
    shutil.copy(data / "train.jsonl", data / "hard.jsonl")
    (data / "pictures").symlink_to(data)
    links = {"outputs/qwen2_5_vl_7b/sampling": data, "outputs/eval/mine": folder / "outputs" / "eval" / "released"}
    for link, target in links.items():
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(target)
    for make, name in ((data_sources.hpdv2_train, "HPD"), (data_sources.open_image_preferences, "oip")):
        (folder / name).mkdir()
        make(folder / name)
    (data / "benchmarks").mkdir()
    (data / "benchmarks" / "vl.json").write_text('[{"prompt": "a prompt of a benchmark, long enough to be known"}]')
    for name in ("results", "outputs/bench", "docs/cost"):
        (folder / name).mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    lay_out(folder)
    return folder


def checked(command, folder, environ):
    """Let bash run a command, expect success, and return what it said."""
    words = ["bash", "-c", command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(words, cwd=folder, env=environ, check=False, **pipes)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def here(command, folder, environ):
    """Run a Python command as a process of its own would, but in this one, which has the libraries; see `checked`."""
    words = []
    for word in shlex.split(command)[1:]:
        words += sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.chdir(folder)
        patch.setenv("OPENAI_API_KEY", environ["OPENAI_API_KEY"])
        patch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stopped:
            assert not stopped.code, f"{said.getvalue()[-4000:]} {stopped}"
    return said.getvalue()


@pytest.fixture(scope="module")
def run(checkout):
    """Run a command of the table once, what it builds on first."""
    done = set()

    def go(command):
        if command in done:
            return
        way = WAYS[command]
        for earlier in way.after:
            go(earlier)
        typed = command
        for word, other in {RELEASED: JUDGE, **way.instead}.items():
            typed = typed.replace(word, other)
        start = here if re.match(OURS, typed) else checked
        with serving(scripted) as server:
            environ = {**environment(), "OPENAI_API_KEY": "none"}
            said = start(f"{typed} {way.more}".replace("$SERVER", server.url), checkout, environ)
        assert "the old name goes" not in said
        for file in re.findall(r"--output(?:_dir)? (\S+)", command):
            assert (checkout / file).exists(), file
        done.add(command)

    return go


@pytest.mark.slow
@each(Run)
def test_a_command_runs_as_it_is_typed(command, run):
    run(command)


class Read(Exception):
    """All arguments were read."""


@pytest.fixture
def read(monkeypatch):
    """Start a Python program and stop when its parser has read what it was given."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        parse_args(parser, *args, **kwargs)
        raise Read

    def go(words):
        module = words[1] if words[0] == "-m" else None
        words = words[1:] if module else words
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.syspath_prepend(str(Path(words[0]).parent))
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), pytest.raises(Read):
                if module == "unifiedreward_think.data":  # whose own parser leaves the rest to that of the command
                    importlib.import_module(importlib.import_module(f"{module}.__main__").COMMANDS[words[1]]).main(
                        words[2:]
                    )
                elif module:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stopped:
            assert not stopped.code, f"{words}: {said.getvalue()} {stopped}"  # --help
        finally:
            monkeypatch.undo()
        assert "the old name goes" not in said.getvalue()

    return go


@each(Parsed)
def test_a_command_for_large_machines_is_read_by_its_parser(command, read, monkeypatch):
    monkeypatch.chdir(REPO)
    words = shlex.split(command)
    read(words[words.index("python") + 1 :])


@pytest.fixture
def look(checkout, monkeypatch, capsys):
    """Let a stage look at toy data in this process, with the arguments that it was given."""

    def go(module, words):
        words = ["stage", *words, "--check_data", "true", "--model_name_or_path", JUDGE]
        words += ["--frame_cache", "outputs/frames"]
        kind = "cold_start" if module.endswith("sft") else "train"
        words += ["--train_files", f"data/{kind}.jsonl"]
        if "--eval_files" in words:
            words += ["--eval_files", "data/heldout.jsonl"]
        monkeypatch.chdir(checkout)
        monkeypatch.setattr(sys, "argv", words)
        importlib.import_module(module).main()
        said = capsys.readouterr()
        assert "data checked: " in said.out and "the old name goes" not in said.err

    return go


def calls(command, checkout, folder):
    """Run a script with programs that write down how they are called."""
    for name in ("python", "torchrun", "vllm", "srun"):
        program = folder / name
        program.write_text(RECORDER if name != "srun" else '#!/bin/sh\nexec "$@"\n')
        program.chmod(0o755)
    scripts = folder / "checkout" / "scripts"
    shutil.copytree(REPO / "scripts", scripts)
    (scripts / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\n')  # it would install
    for name in ("src", "configs"):
        (scripts.parent / name).symlink_to(REPO / name)
    own = ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "HOSTFILE")
    environ = {key: value for key, value in os.environ.items() if key not in own and not key.startswith("SLURM_")}
    environ |= {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "CUDA_VISIBLE_DEVICES": ""}
    environ |= {"VIRTUAL_ENV": str(folder), "out": "outputs/toy/seed0"}
    checked(command, scripts.parent, environ)
    return [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.slow
@each(Script)
def test_what_a_script_calls_takes_its_arguments(command, checkout, tmp_path, read, look, monkeypatch):
    called = calls(command, checkout, tmp_path)
    assert called
    for words in called:
        module = words[words.index("-m") + 1]
        given = words[words.index("-m") + 2 :]
        if module in STAGES:
            look(module, given)
        else:
            monkeypatch.chdir(REPO)
            read(["-m", module, *given])


@pytest.mark.slow
def test_the_requests_by_curl_are_answered(checkout):
    need("curl")
    document = (REPO / "docs" / "reward_server.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n((?:image\(\)|curl).*?)^```", document, flags=re.DOTALL | re.MULTILINE)
    with LiveServer(Scores()) as url:
        said = checked("echo\n".join(blocks).replace("http://127.0.0.1:8080", url), checkout, environment())
    compared, scored = map(json.loads, said.splitlines())
    assert compared["winner"] in (0, 1, None)
    assert scored["candidates"][0]["points"] > 0 and scored["candidates"][0]["readable"] == 5


# Flags ---------------------------------------------------------------------------------------------------------------


def flags(words):
    """Flags with `-`: both spellings are taken."""
    return {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--") and word != "--"}


@cache
def accepted(module):
    """The flags of an entry point, by its own --help; fields of TRL's configs that the help names count too."""
    imported = importlib.import_module(module)
    if hasattr(imported, "__path__"):
        imported = importlib.import_module(f"{module}.__main__")
    said = help_of(imported.main, module)
    usage = said.partition("\n\n")[0]
    found = {"--help", "--help-all"} | set(re.findall(r"--[\w-]+", usage))
    for name in re.findall(r"trl\.(\w+Config)", said.rpartition("Every field of")[2]):
        found |= fields(getattr(importlib.import_module("trl"), name))
    return found


@cache
def accepted_by_script(script):
    """The flags of a Python script outside the package, by the --help it prints."""
    said = subprocess.run([sys.executable, REPO / script, "--help"], capture_output=True, text=True, check=True).stdout
    return {"--help"} | set(re.findall(r"--[\w-]+", said.partition("\n\n")[0]))


def help_of(main, module):
    before, printed = sys.argv, io.StringIO()
    sys.argv = [module, "--help"]
    try:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = before
    assert not stopped.value.code
    return printed.getvalue()


def fields(cls):
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(cls)}


def stock_grpo():
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    return set().union(*map(fields, (GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig)))


@pytest.mark.parametrize("command", [command for command in WAYS if command.startswith("trl grpo ")])
def test_stock_trl_knows_the_flags_and_we_the_rewards(command):
    words = shlex.split(command)
    assert flags(words) <= stock_grpo()
    for reward in (word for word in words if word.startswith("unifiedreward_think.")):
        module, _, name = reward.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.fixture(scope="module")
def known():
    """The flags of everything a user starts."""
    data = importlib.import_module("unifiedreward_think.data.__main__").COMMANDS.values()
    parts = ("serving", "evaluation", *(f"evaluation.{name}" for name in ("report", "rescore", "training_report")))
    modules = [*STAGES, *data, *(f"unifiedreward_think.{name}" for name in (*parts, "training.plan"))]
    scripts = ("inference/image_generation.py", "scripts/bench/serving.py")
    found = set().union(*map(accepted, sorted(modules)), *map(accepted_by_script, scripts))
    return found | {"--chat-template-content-format"}  # vLLM's


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_flag_in_the_prose_belongs_to_some_command(document, known):
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        if " ".join(code.split()) not in WAYS and "..." not in code:
            assert flags(code.split()) <= known, code


# Docstrings ----------------------------------------------------------------------------------------------------------


# A placeholder; the plan, which the table runs; two without a parser, which test_gpu_bench runs.
UNREAD = ("COMMAND", "training.plan", "gpu_packages.py", "gpu_table.py")


def of_docstrings():
    """The commands that the first lines of our modules show."""
    for folder in (PACKAGE, *(REPO / name for name in ("inference", "benchmark_evaluation", "gradio", "scripts"))):
        for file in sorted(folder.rglob("*.py")):
            for line in lines_of(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""):
                if found := re.match(r"(?:nice )?(?:python|accelerate launch) (.*?)(?: \.\.\.)?$", line):
                    yield pytest.param(found[1], id=f"{file.stem}: {found[1][:60]}")


@pytest.mark.slow
@pytest.mark.parametrize("words", of_docstrings())
def test_a_command_in_a_docstring_is_read_by_its_parser(words, read, look, monkeypatch):
    if (module := words.removeprefix("-m ").split()[0]) in STAGES:
        look(module, shlex.split(words)[2:])
    elif not any(name in words for name in UNREAD):
        monkeypatch.chdir(REPO)
        read(shlex.split(words))
