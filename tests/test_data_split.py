"""Groups stay together, every source is divided in the same ratio, and mixtures take the rows they name."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data import save, stored
from unifiedreward_think.data.curation.split import PARTS, Seen, assign, groups, main, mixed
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.data.sources.mixture import read_entries, read_mixture, select, shares


def grouped(rows):
    seen = Seen()
    for row in rows:
        seen.add(row, 0)
    return groups(seen.keys, seen.ends).tolist()


def parts_in(output):
    return {name: [row.record for _, _, row in read_stored([output / name])] for name in PARTS}


def test_rows_that_share_a_prompt_or_a_picture_are_one_group_also_through_others():
    rows = [
        stored(0, prompt="a red kite", pictures=["/a", "/b"]),
        stored(1, prompt=" A Red kite.", pictures=["/c", "/d"]),  # the same caption
        stored(2, pictures=["/d", "/e"]),  # a picture of row 1
        stored(3, pictures=["/x", "/y"]),
        stored(4, pictures=["/z", "/y"]),
    ]
    found = grouped(rows)
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4] != found[0]
    assert grouped(rows[::-1]) == found[::-1]


def test_questions_are_grouped_by_what_they_are_about_not_by_their_words():
    ask = {"prompt": "What is this?", "task": "image_understanding"}
    found = grouped([stored(0, **ask), stored(1, **ask), stored(2, **ask, pictures=["/hpd/0-a.png"])])
    assert found[0] == found[2] != found[1]


def test_a_group_of_the_source_holds_rows_together_within_that_source():
    found = grouped([stored(0, group="g"), stored(1, group="g"), stored(2, group="g", source="oip")])
    assert found[0] == found[1] != found[2]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=200),
    st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_divided_whatever_the_rows_and_shares_are(rows, parts, seed):
    found = assign([group for group, _ in rows], [name for _, name in rows], parts, seed)
    assert all(len({p for p, (g, _) in zip(found, rows, strict=True) if g == group}) == 1 for group, _ in rows)
    assert all(parts[part] > 0 for part in found)


def test_every_source_and_task_is_divided_in_the_ratio_that_is_asked_for():
    strata = [number for number, count in enumerate((500, 100, 30)) for _ in range(count)]
    found = assign(list(range(len(strata))), strata, [0.6, 0.3, 0.1], seed=0)
    counts = Counter(zip(strata, found.tolist(), strict=True))
    for name, count in Counter(strata).items():
        assert [counts[name, part] for part in range(3)] == pytest.approx(
            [0.6 * count, 0.3 * count, 0.1 * count], abs=1
        )


def test_new_rows_move_few_old_ones_and_the_order_of_rows_moves_none():
    strata = [0] * 1100
    numbers = [7919 * i for i in range(1100)]
    before = dict(zip(numbers, assign(numbers[:1000], strata[:1000], [0.6, 0.3, 0.1], seed=0), strict=False))
    after = dict(zip(numbers, assign(numbers, strata, [0.6, 0.3, 0.1], seed=0), strict=True))
    turned = dict(zip(numbers[::-1], assign(numbers[::-1], strata, [0.6, 0.3, 0.1], seed=0), strict=True))
    assert sum(before[n] != after[n] for n in before) < 30
    assert turned == after
    assert assign(numbers, strata, [0.6, 0.3, 0.1], seed=1).tolist() != list(after.values())


def test_the_command_writes_three_parts_that_share_no_prompt_and_no_picture(tmp_path, capsys):
    rows = [stored(i, prompt=f"kite {i // 3}", source="hpd" if i < 60 else "oip") for i in range(90)]
    save(tmp_path / "in", rows)
    main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    found = parts_in(tmp_path / "out")
    assert {name: len(records) for name, records in found.items()} == {
        "train": 54,
        "rejection_sampling": 27,
        "heldout": 9,
    }
    prompts = [{record.prompt for record in records} for records in found.values()]
    assert not any(a & b for i, a in enumerate(prompts) for b in prompts[:i])
    said = json.loads(capsys.readouterr().out)
    assert sum(said[name]["kept"] for name in PARTS) == 90
    manifests = {name: (tmp_path / "out" / name / "manifest.json").read_bytes() for name in PARTS}
    main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert manifests == {name: (tmp_path / "out" / name / "manifest.json").read_bytes() for name in PARTS}


def test_a_mixture_takes_what_it_names_and_lists_the_rest(tmp_path):
    rows = [stored(i, source=source) for source, count in (("hpd", 60), ("oip", 20)) for i in range(count)]
    save(tmp_path / "in", rows)
    (tmp_path / "mixture.yaml").write_text("hpd: random:50%\noip: first:5\n")
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--shares", "1", "0", "0"]
    main([*arguments, "--mixture", str(tmp_path / "mixture.yaml")])
    records = parts_in(tmp_path / "out")["train"]
    assert Counter(record.source for record in records) == {"hpd": 30, "oip": 5}
    assert [record.id for record in records if record.source == "oip"] == [f"oip-{i}" for i in range(5)]
    left = (tmp_path / "out" / "train" / "left_out" / "00000.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in left} == {"not taken by the mixture"}
    assert len(left) == 45


def test_weights_are_shares_of_the_mixture_and_no_row_is_used_twice():
    sources = [0] * 100 + [1] * 10 + [2] * 50
    used = mixed(sources, ["a", "b", "c"], list(range(160)), {"a": 2.0, "b": 1.0, "c": 0.0})
    assert Counter(source for source, taken in zip(sources, used, strict=True) if taken) == {0: 20, 1: 10}
    with pytest.raises(DataError, match="'c' is in the mixture or in the data only"):
        mixed(sources, ["a", "b", "c"], list(range(160)), {"a": 2.0, "b": 1.0})


def test_random_rows_of_a_source_do_not_depend_on_the_other_sources(tmp_path):
    hpd, oip = ([stored(i, source=source) for i in range(40)] for source in ("hpd", "oip"))
    (tmp_path / "hpd.yaml").write_text("hpd: random:10\n")
    (tmp_path / "both.yaml").write_text("hpd: random:10\noip: all\n")
    for name, rows in (("hpd", hpd), ("both", [*oip[:25], *hpd])):
        command = [
            "--input",
            save(tmp_path / f"{name}-in", rows),
            "--output",
            tmp_path / name,
            "--shares",
            "1",
            "0",
            "0",
        ]
        main(list(map(str, [*command, "--mixture", tmp_path / f"{name}.yaml", "--seed", "3"])))
    alone, among = (parts_in(tmp_path / name)["train"] for name in ("hpd", "both"))
    assert len(alone) == 10
    assert {record.id for record in among if record.source == "hpd"} == {record.id for record in alone}


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=30))
@settings(deadline=None)
def test_groups_are_those_that_a_walk_from_row_to_row_finds(rows):
    keys, ends = [key for row in rows for key in row], [sum(map(len, rows[: i + 1])) for i in range(len(rows))]
    found = groups(keys, ends).tolist()
    for i, row in enumerate(rows):
        reached = set(row)
        while more := {key for other in rows if reached & set(other) for key in other} - reached:
            reached |= more
        assert found[i] == min(reached)


def test_an_input_without_rows_is_divided_into_parts_without_rows(tmp_path, capsys):
    main(["--input", str(save(tmp_path / "in", [])), "--output", str(tmp_path / "out")])
    assert [part["kept"] for part in json.loads(capsys.readouterr().out).values()] == [0, 0, 0]


@given(st.sampled_from(["first", "end", "random"]), st.integers(0, 300), st.booleans(), st.integers(0, 120))
@settings(deadline=None)
def test_a_strategy_takes_as_many_rows_as_the_published_loader(kind, amount, percent, total):
    found = list(select(f"{kind}:{amount}{'%' if percent else ''}", total, seed=1))
    wanted = math.ceil(amount * total / 100) if percent else amount
    assert len(found) == len(set(found)) == min(total, wanted)
    assert all(0 <= i < total for i in found)
    if kind == "first":
        assert found == list(range(len(found)))
    if kind == "end":
        assert found == list(range(total - len(found), total))


@pytest.mark.parametrize("strategy", ["", "some", "first", "first:", "random:-1", "random:5.5%", "first:3 "])
def test_an_unknown_strategy_is_refused(strategy):
    with pytest.raises(DataError, match="write all, first:N, end:N or random:N"):
        select(strategy, 10)


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0}, {}])
def test_weights_that_make_no_mixture_are_refused(weights):
    with pytest.raises(DataError, match="mixture: "):
        shares({"a": 3}, weights)


@pytest.mark.parametrize("text", ["", "- a", "a: [1]", "a: 1\nb: all", "a: yes", "a: {", "{}"])
def test_a_mixture_file_that_means_nothing_is_refused(text, tmp_path):
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(DataError, match=r"mixture\.yaml"):
        read_mixture(tmp_path / "mixture.yaml")


def test_a_released_yaml_without_data_sets_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("datasets: [{path: x}]")
    with pytest.raises(DataError, match="json_path"):
        read_entries(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("datasets: [{json_path: x/y.json}]")
    assert read_entries(tmp_path / "a.yaml") == [(Path("x/y.json"), Path("x"), "all")]
