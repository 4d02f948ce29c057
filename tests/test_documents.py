"""Figures of the documents are those of the files that they name, rounded; and every file of results is named."""

import json
import re
from functools import cache
from pathlib import Path
from statistics import median

import pytest

from unifiedreward_think.toy.ablation import table

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
POLICY = "new tokens | original | TRL | `shared_prefix` | TRL / ours | bound"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?")


@cache
def text(document):
    return (ROOT / document).read_text(encoding="utf-8")


@cache
def results(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def rows(document, header, first=""):
    """The cells of the table whose header begins with `header`, and of its rows that begin with `first`."""
    _, found, rest = text(document).partition(f"\n| {header}")
    assert found, f"{document}: no table {header!r}"
    lines = rest.split("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"\s*(?<!\\)\|\s*", line)[1:-1] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0].startswith(first)]


def shown(cell):
    return [number.replace(",", "") for number in NUMBER.findall(cell)]


def agrees(number, value):
    """Whether a number as printed is a value, rounded to its digits; a half may go either way."""
    mantissa, _, exponent = number.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(number) - value) <= 0.5 * unit * (1 + 1e-6)


def check(cells, values):
    """Hold all numbers of some cells against values."""
    numbers = [number for cell in cells for number in shown(cell)]
    assert len(numbers) == len(values), (cells, values)
    assert [pair for pair in zip(numbers, values, strict=True) if not agrees(*pair)] == []


def holds(cell, *values):
    """Look for values among the numbers of a cell, in their order."""
    numbers = iter(shown(cell))
    assert [value for value in values if not any(agrees(number, value) for number in numbers)] == [], cell


def of(point, key, *implementations):
    return [point[name][key] for name in implementations]


def memory(point, *implementations):
    return of(point, "peak_memory_mib", *implementations)


# speed.md


def test_the_grpo_step():
    points = results("grpo_step")["points"]
    for row in rows("docs/speed.md", "new tokens | original | TRL | `shared_prefix` | original / ours"):
        point = points[row[0]]
        check(row[1:4], of(point, "cpu_seconds", "original", "trl", "ours"))
        check(row[4:6], of(point, "times_ours", "original", "trl"))
        check(row[7:9], [*memory(point, "original", "trl", "ours"), point["trl"]["memory_times_ours"]])
        assert point["trl"]["times_ours"] >= float(row[6]) and point["trl"]["memory_times_ours"] >= float(row[9])
    worst = {
        name: max(point[name]["largest_relative_difference_to_trl"] for point in points.values())
        for name in ("ours", "original")
    }
    holds(re.search(r"ours to \S+, the transcription to \S+", text("docs/speed.md"))[0], *worst.values())


def test_the_work_of_a_step():
    point = results("grpo_step")["points"]["64"]
    ours, trl = point["ours"], point["trl"]
    work = ("pictures processed", "vision patches", "prefill tokens", "reference tokens", "policy tokens")
    expected = {name: (trl["work_per_step"][name], ours["work_per_step"][name]) for name in work}
    expected["CPU seconds from picture files to the model's input"] = trl["input_seconds"], ours["input_seconds"]
    for name, theirs, mine, ratio in rows("docs/speed.md", "work of a step, 64 new tokens")[:-1]:
        check([theirs, mine], expected[name])
        check([ratio], [expected[name][0] / expected[name][1]])
    check(rows("docs/speed.md", "work of a step, 64 new tokens")[-1][1:3], of(point, "waited_seconds", "trl", "ours"))


@pytest.mark.parametrize(("first", "name"), [("LoRA", "grpo_step_lora"), ("two groups", "grpo_step_dead")])
def test_the_step_with_one_thing_changed(first, name):
    (row,), point = rows("docs/speed.md", "the same step, 64 new tokens", first), results(name)["points"]["64"]
    check(row[1:4], [*of(point, "cpu_seconds", "trl", "ours"), point["trl"]["times_ours"]])
    check([row[5]], [point["trl"]["memory_times_ours"]])
    check([row[6]], [point["ours"]["largest_relative_difference_to_trl"]])


@pytest.mark.parametrize(
    ("first", "name", "tokens"),
    [("128", "policy_pass", "128"), ("400", "policy_pass", "400"), ("the same", "policy_pass_vocabulary_4", "128")],
)
def test_the_policy_pass(first, name, tokens):
    row, point = rows("docs/speed.md", POLICY, first)[0], results(name)["points"][tokens]
    ours, trl = point["ours"], point["trl"]
    check(row[1:4], of(point, "cpu_seconds", "original", "trl", "ours"))
    check(row[4:6], [trl["times_ours"], trl["token_bound"]])
    with_encoding = trl["cpu_seconds"] / (ours["cpu_seconds"] + ours["encoding_seconds"]) / trl["token_bound"]
    check([row[6]], [trl["share_of_token_bound"], with_encoding][: len(shown(row[6]))])
    check([row[7]], memory(point, "original", "trl", "ours"))
    holds(row[8], point["original"]["memory_times_ours"])
    check([row[9]], [trl["memory_times_ours"]])
    assert max(of(point, "largest_relative_difference_to_trl", "original", "ours")) <= 5e-6


def test_the_policy_pass_with_the_vocabulary_of_qwen():
    point = results("policy_pass_vocabulary")["points"]["128"]
    (row,) = rows("docs/speed.md", POLICY, "128, Qwen")
    trl = point["trl"]
    check(row[2:6], [*of(point, "cpu_seconds", "trl", "ours"), trl["times_ours"], trl["token_bound"]])
    check([row[6], row[7]], [trl["share_of_token_bound"], *memory(point, "trl", "ours")])
    check([row[9]], [trl["memory_times_ours"]])


def test_the_sft_step():
    for row, kind in zip(rows("docs/speed.md", "rows | TRL, padded"), ("mixed", "siblings"), strict=True):
        point = results("sft_step")["rows"][kind]
        check(row[1:4], [*of(point, "cpu_seconds", "trl", "ours"), point["trl"]["times_ours"]])
        check([row[5]], [point["trl"]["memory_times_ours"]])
        assert point["trl"]["times_ours"] >= float(row[4])
        assert point["ours"]["largest_relative_difference_to_trl"] <= 1e-6


CURVES = {"tokens": "new-tokens", "completions": "group", "prompts": "groups", "words": "words", "pictures": "pictures"}


@pytest.mark.parametrize("first", CURVES)
def test_what_a_step_costs(first):
    (row,), points = rows("docs/speed.md", "what grows", first), results(f"curve_{CURVES[first]}")["points"]
    assert shown(row[0].partition(":")[2]) == list(points)
    check([row[1]], [point["trl"]["cpu_seconds"] for point in points.values()])
    check([row[2]], [point["ours"]["cpu_seconds"] for point in points.values()])
    check([row[3]], [point["trl"]["times_ours"] for point in points.values()])
    check([row[4]], [point["trl"]["peak_memory_mib"] for point in points.values()])
    check([row[5]], [point["ours"]["peak_memory_mib"] for point in points.values()])
    assert max(point["ours"]["largest_relative_difference_to_trl"] for point in points.values()) <= 3.5e-6


# The other documents


@pytest.mark.parametrize(
    ("place", "name", "part"),
    [(0, "direct", "evaluation"), (1, "direct", "sampling"), (2, "cot", "evaluation"), (3, "cot", "sampling")],
)
def test_judging(place, name, part):
    row, point = rows("docs/judging.md", "answers | one pair at a time")[place], results(f"judging_{name}")[part]
    seconds = [median(point[f"cpu_seconds_{way}"]) for way in ("one_by_one", "judge")]
    holds(row[0], point["tokens_in_an_answer"])
    check(row[1:5], [*seconds, point["speedup"], point["speedup_by_wall_clock"]])
    assert point["speedup"] >= float(row[5])
    equal, total = point["equal_answers"].split("/")
    assert equal == total == shown(row[0])[0]


def test_the_reward_server():
    speed, load = results("serving_speed")["speed"], results("serving_load")
    first, latency, cached, storm, resident, mixed = [row[1] for row in rows("docs/reward_server.md", "part | figure")]
    slow, fast = speed["judgments_a_second"]
    holds(first, fast, slow, speed["speedup"], *map(int, speed["equal_completions"].split("/")))
    pair, group = (speed[f"latency_{key}"] for key in ("one_pair", "group_of_8"))
    check(
        [latency.replace("group of 56", "").replace("p50", "").replace("p99", "")],
        [1000 * part[key] for part in (pair, group) for key in ("p50", "p99")],
    )
    parts = results("serving_cache")["cache"]
    larger = [median(parts["larger"]["cpu_seconds"][key]) for key in ("off", "on")]
    holds(cached, parts["toy"]["speedup"], parts["larger"]["speedup"], *larger, parts["larger_direct"]["speedup"])
    assert ", ".join(part["equal_completions"] for part in parts.values()) in cached
    holds(storm, load["load"]["requests_a_second"], *load["load"]["latency"].values())
    size = load["memory"]["resident_mib"]
    holds(resident, size[2], 4000, size[5], 10000, size[10], 20000)
    bad = results("serving_bad")["bad"]
    holds(mixed, bad["ratio"], min(bad["ratio_of_each_round"]), max(bad["ratio_of_each_round"]))
    assert bad["wrong"] == 0
    assert load["load"]["wrong_lost_or_mixed_up"] == load["memory"]["wrong_lost_or_mixed_up"] == 0


STAGES = {
    "SFT": "sft",
    "GRPO, shared prefix": "grpo",
    "GRPO, TRL's own passes": "grpo_stock",
    "rejection sampling": "rejection_sampling",
    "judging": "judging",
    "data import": "import",
    "data split": "split",
    "GRPO on two ranks, one killed": "grpo_2_ranks",
    "SFT on two ranks, one killed": "sft_2_ranks",
}


def test_kills():
    found = results("survival")
    assert {row[0] for row in rows("docs/survival.md", "stage | kills")} == set(STAGES)
    for name, kills, asked, survived in rows("docs/survival.md", "stage | kills"):
        stage = found["stages"][STAGES[name]]
        check([kills, survived], [stage["kills"], stage["survived"]])
        check([asked], [stage["by SIGTERM"]] if asked else [])
    total, ranks = found["total"], results("survival_ranks")["total"]
    same = "runs with the results of the undisturbed one"
    assert f"All {total['runs']} runs end with the results" in text("docs/survival.md")
    assert total["runs"] == total[same] and total["kills"] == total["survived"]
    assert "Twelve more kills of two ranks" in text("docs/survival.md")
    assert (ranks["kills"], ranks["survived"], ranks["runs"]) == (12, 12, ranks[same])


def test_broken_input():
    words = {"verdict parser": "verdict", "record reader": "records", "config reader": "config"}
    for name, inputs, outcomes, crashes in rows("docs/survival.md", "target | inputs | outcomes | crashes |"):
        target = results("fuzz")["targets"][words[name]]
        counts = target["outcomes"]
        check([inputs, crashes], [target["inputs"], len(target["crashes"])])
        used = counts.get("winner", counts.get("used"))
        others = sum(n for key, n in counts.items() if key not in ("winner", "used", "blank"))
        check([outcomes], [used, others, *([counts["blank"]] if "blank" in counts else [])])
    pictures, clips = rows("docs/survival.md", "target | inputs | outcomes | crashes, or shown wrongly")
    drawn, made = (results("fuzz_media")["targets"][name] for name in ("pictures", "clips"))
    of_pictures = [drawn["outcomes"][key] for key in ("equal", "refused by name", "damaged, read", "damaged, refused")]
    check(pictures[1:], [drawn["inputs"], *of_pictures, 0])
    counts = made["outcomes"]
    damaged = counts["damaged, read by all"] + counts["damaged, read by some"], counts["damaged, refused"]
    of_clips = [counts[key] for key in ("read by all", "read by some", "refused")]
    check(clips[1:], [made["inputs"], *of_clips, *damaged, 0])
    (models,) = rows("docs/survival.md", "target | folders | loaded")
    folders = results("fuzz_checkpoints")["targets"]["checkpoints"]
    check(models[1:], [folders["inputs"], folders["outcomes"]["loaded"], folders["outcomes"]["refused"], 0])
    assert folders["crashes"] == []
    assert results("fuzz_media")["total"]["crashes"] == results("fuzz")["total"]["crashes"] == 0


def test_the_memory_of_the_data_commands():
    found = results("data_memory")
    for command, peaks, _ in rows("docs/data.md", "command | peak (rows)"):
        runs = {run["rows"]: run["peak_mib"] for run in found[command.strip("`")]["runs"]}
        numbers = shown(peaks)
        pairs = list(zip(numbers[::2], map(int, numbers[1::2]), strict=True))
        assert len(pairs) == 2 and [pair for pair in pairs if not agrees(pair[0], runs[pair[1]])] == []
    said = re.search(r"CPU time at 1,000,000 rows: .*?200,000", text("docs/data.md"), flags=re.DOTALL)[0]
    seconds = {name: {run["rows"]: run["cpu_seconds"] for run in found[name]["runs"]} for name in found}
    holds(said, seconds["split"][1_000_000], seconds["check"][1_000_000], seconds["export"][200_000])


def test_the_toy_ablation():
    assert table(results("toy_ablation")) == (ROOT / "results" / "toy_ablation.md").read_text(encoding="utf-8")
    judge = json.loads((ROOT / "src/unifiedreward_think/toy/judge/training_log.json").read_bytes())
    (said,) = re.findall(r"trained toy judge of the package \((\.\d+) on held-out", text("README.md"))
    assert agrees(f"0{said}", judge["held out"]["grpo"]["overall"][0])


# Where figures come from


def test_the_calibration_of_genai_bench():
    found = results("genai_calibration")
    for way, score, error in rows("docs/scores.md", "probabilities | Brier score"):
        check([score], [found["ways"][way]["brier"][key] for key in ("value", "low", "high")])
        check([error], [found["ways"][way]["calibration_error"]])
    for said, *cells in rows("docs/scores.md", "verdict | pairs"):
        check(cells, list(found["given_the_verdict"][said if said == "none" else f"[[{said}]]"].values()))
    holds(re.search(r"on [\d,]+ published judgments.*?ties\)", text("docs/scores.md"), re.DOTALL)[0], 1735, 429)


def test_every_file_of_results_is_named_and_every_named_one_is_there():
    there = {f"results/{path.name}" for path in (ROOT / "results").iterdir()}
    named = set()
    for document in DOCUMENTS:
        for name in re.findall(r"results/[\w.*{},-]+\w", text(document)):
            found = {str(path.relative_to(ROOT)) for path in ROOT.glob(name)}
            assert found, f"{document}: no {name}"
            named |= found
    assert there - named - {"results/toy_ablation.json", "results/toy_ablation.md"} == set()  # those: ablation.sh


def versions(node):
    """The torch versions that a file of results names, at whichever depth."""
    if not isinstance(node, dict):
        return set()
    own = {node["versions"]["torch"]} if "torch" in node.get("versions", ()) else set()
    return own.union(*map(versions, node.values()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_says_with_which_torch_its_figures_were_measured(document):
    for name in re.findall(r"results/[\w.*-]+\.json", text(document)):
        for path in ROOT.glob(name):
            for version in versions(json.loads(path.read_bytes())):
                assert f"torch {version}" in text(document), f"{document}: {name} was measured with torch {version}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_knows_the_lock_of_today(document):
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for version in re.findall(r"the\s+lock\s+has\s+([\d.]+)\s+now", text(document)):
        assert re.search(rf"^torch={{2,3}}{re.escape(version)}\b", lock, flags=re.MULTILINE), version
