"""What the README says can be typed, opened and found: commands, flags, examples, links, paths, messages, versions."""

import inspect
import json
import re
import tomllib
from pathlib import Path

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
