"""What the README says can be typed, opened and found: commands, flags, examples, links, paths, messages, versions."""

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from unifiedreward_think.backends import Completion
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.data.formats.shapes import Origin, read_record, read_trace
from unifiedreward_think.verdict import render

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unifiedreward_think"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
CODE = re.findall(r"`([^`\n]+)`", PROSE)
LIBRARY_MESSAGES = {  # not ours to keep
    "Unknown arguments from config file",
    "Image features and image tokens do not match",
    "operator torchvision::nms does not exist",
    "FlashAttention2 has been toggled on, but it cannot be used",
    "TRL currently supports vLLM versions from 0.22.0 to 0.31.0",
    "Your setup doesn't support bf16/gpu",
    "CUDA out of memory",
    "No module named 'decord'",
}


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def commands():
    lines = "".join(fences("bash")).replace("\\\n", " ").splitlines()
    lines += sorted({code for code in CODE if code.startswith(("bash ", "pip "))})
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def flags(words):
    return {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}


@cache
def accepted(module):
    """The flags of an entry point, by its own --help; fields of TRL's configs that the help names count too."""
    imported = importlib.import_module(module)
    if hasattr(imported, "__path__"):
        imported = importlib.import_module(f"{module}.__main__")
    said = help_of(imported.main, module)
    usage = said.partition("\n\n")[0]
    found = {"--help", "--help_all"} | set(re.findall(r"--[\w-]+", usage))
    for name in re.findall(r"trl\.(\w+Config)", said.rpartition("Every field of")[2]):
        found |= fields(getattr(importlib.import_module("trl"), name))
    return found


@cache
def accepted_by_script(script):
    """The flags of a Python script outside the package, by the --help it prints."""
    said = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
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
    return {f"--{field.name}" for field in dataclasses.fields(cls)}


def stock_grpo():
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    return set().union(*map(fields, (GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig)))


def modules_of(script):
    """The modules a script runs, in order."""
    return re.findall(r"^[^#\n]*(unifiedreward_think\.[\w.]+)", (ROOT / script).read_text("utf-8"), flags=re.MULTILINE)


def resolve(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def check_script(script, words):
    assert (ROOT / script).is_file()
    config = next((word for word in words if word.endswith(".yaml")), None)
    if config is None:
        assert not flags(words)
        return
    assert (ROOT / config).is_file()
    split = words.index("--") if "--" in words else len(words)
    parts = [words[:split], words[split:]]
    modules = modules_of(script)
    assert modules
    for part, module in zip(parts, modules, strict=False):
        assert flags(part) <= accepted(module)
    assert not flags(parts[1]) or len(modules) == 2


def check_python(words):
    if words[0] != "-m":
        assert flags(words) <= accepted_by_script(words[0])
        return
    assert importlib.util.find_spec(words[1]) is not None
    assert flags(words) <= accepted(words[1])


def check_trl(words):
    assert words[0] == "grpo"
    assert flags(words) <= stock_grpo()
    for reward in (word for word in words if word.startswith("unifiedreward_think.")):
        assert callable(resolve(reward))


def check_pip(words):
    assert words[0] == "install"
    for file in (words[i + 1] for i, word in enumerate(words) if word in ("-c", "-r")):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:70])
def test_a_command_exists_with_all_of_its_flags(words):
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        assert words[0].partition("=")[0] in (ROOT / "scripts" / "launch.sh").read_text("utf-8")
        words = words[1:]
    checks = {"python": check_python, "trl": check_trl, "pip": check_pip}
    if words[0] == "bash":
        check_script(words[1], words[2:])
    else:
        checks[words[0]](words[1:])


def test_a_flag_in_the_prose_belongs_to_some_entry_point():
    known = set().union(*(accepted(module) for module in ("unifiedreward_think.evaluation", *stages())))
    known |= accepted_by_script("inference/image_generation.py")
    for code in CODE:
        assert flags(code.split()) <= known, code


def stages():
    return [module for file in sorted((ROOT / "scripts").glob("[01g]*.sh")) for module in modules_of(file)]


def test_extras_are_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[([\w-]+)\]'", TEXT))
    assert named
    assert named <= set(declared)


class FirstAlways:
    """A stand-in for TransformersBackend that takes its arguments and prefers whatever is shown first."""

    settings = {}  # noqa: RUF012

    def __init__(self, *args, **kwargs):
        bound = inspect.signature(TransformersBackend).bind(*args, **kwargs)
        bound.apply_defaults()
        self.model, self.batch_size = bound.arguments["path"], bound.arguments["batch_size"]

    def complete(self, prompts, *, sampling, seeds):
        said = render(1, [("Aesthetics", 8, 3)], noun="Image")
        return [[Completion(said, "stop") for _ in row] for row in seeds]


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = fences("python")
    monkeypatch.setattr("unifiedreward_think.backends.transformers.TransformersBackend", FirstAlways)
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(name)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == "1\n"


def test_the_rows_shown_are_read():
    rows = [json.loads(line) for block in fences("jsonl") for line in block.splitlines()]
    assert len(rows) == 5
    origin = Origin(name="train-1", source="train", root=ROOT)
    for row in rows:
        assert read_record(row, origin).preferred in (1, 2)
    traces = [read_trace(row, origin) for row in rows if "record" in row or "conversations" in row]
    assert [trace.order for trace in traces] == ["ba", "ab"]


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere():
    slugs = {slug(heading) for heading in re.findall(r"^#+ (.+)$", PROSE, flags=re.MULTILINE)}
    targets = re.findall(r"\]\(([^)\s]+)\)", PROSE)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in slugs
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def mapped():
    """The paths of the repository map; a line holds names, two spaces, and what they are."""
    (block,) = (block for block in fences("text") if "src/unifiedreward_think/\n" in block)
    paths, folder = [], ROOT
    for line in block.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT
        paths += [folder / name for name in names]
        if not line.startswith(" ") and len(names) == 1:
            folder = ROOT / names[0]
    return paths


def test_the_repository_map_is_true():
    paths = mapped()
    assert [path for path in paths if not path.exists()] == []
    modules = {file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"}
    folders = {file.parent for file in PACKAGE.glob("*/*") if file.suffix in (".py", ".txt")}
    assert modules | folders <= set(paths)


def test_paths_in_the_prose_exist():
    found = [code for code in CODE if re.match(r"(scripts|configs|src|tests)/\S+$", code)]
    found += [f"configs/qwen2_5_vl_7b/{code}" for code in CODE if re.fullmatch(r"\w+\.yaml", code)]
    assert found
    assert [path for path in found if not (ROOT / path).exists()] == []


def test_quoted_messages_are_ours_or_known():
    section = PROSE.partition("## Troubleshooting\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines()[2:] if line.startswith("|")]
    source = "".join(file.read_text("utf-8") for file in PACKAGE.rglob("*.py"))
    for message in (re.search(r"`([^`]+)`", cell).group(1) for cell in cells):
        assert message in LIBRARY_MESSAGES or message in source, message


def test_versions_are_those_of_the_locks():
    section = TEXT.partition("## Versions\n")[2].partition("\n## ")[0]
    lock = "".join((ROOT / file).read_text("utf-8") for file in ("requirements.lock", "requirements-vllm.lock"))
    named = re.findall(r"([\w-]+) (\d+\.[\d.]*\d)", section)
    assert len(named) == 5
    for name, version in named:
        assert re.search(rf"^{name}={{2,3}}{re.escape(version)}\b", lock, flags=re.MULTILINE), name


def test_the_toy_table_is_the_one_in_results():
    start, end = "<!-- toy-results -->\n", "<!-- /toy-results -->\n"
    assert TEXT.count(start) == TEXT.count(end) == 1
    inside = TEXT.partition(start)[2].partition(end)[0].strip()
    results = ROOT / "results" / "toy_ablation.md"
    if results.is_file():
        assert inside == results.read_text("utf-8").strip()
    else:
        assert "results/toy_ablation.md" in inside
        assert "bash scripts/ablation.sh" in inside


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 260
