"""What ends a run early is agreed on by all ranks: none waits for one that has gone, and all say why."""

import json

import pytest

from helpers.processes import forked

STAGES = pytest.mark.parametrize("stage", ["sft_2_ranks", "rejection_sampling"])


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What two ranks do, by case: statuses, what each said, and whether the first waited for the last to meet it."""
    folder = tmp_path_factory.mktemp("early-ends")
    return json.loads(forked(folder, "tests/helpers/early_ends.py", folder).splitlines()[-1])


@pytest.mark.slow
@STAGES
@pytest.mark.parametrize("late", [0, 1])
def test_a_finished_run_that_is_started_again_ends_on_both_ranks_whichever_is_late(stage, late, ended):
    case = ended[f"{stage}: finished, rank {late} is late"]
    assert case["statuses"] == [0, 0]
    assert case["first end after last read"]  # nobody leaves while the other one may still be connecting
    assert ("finished already" if stage == "sft_2_ranks" else "0 kept, 12 hard") in case["said"][0]


@pytest.mark.slow
@STAGES
@pytest.mark.parametrize("rank", [0, 1])
def test_data_that_one_rank_misses_ends_both_with_its_message(stage, rank, ended):
    case = ended[f"{stage}: rank {rank} misses its data"]
    assert case["statuses"] == [1, 1] and case["first end after last read"]
    assert case["said"][rank].startswith("error: ") and "missing.jsonl: no such file" in case["said"][rank]
    assert case["said"][1 - rank] == case["said"][rank].replace("error: ", f"error: rank {rank}: ")


@pytest.mark.slow
@STAGES
def test_an_output_in_use_is_refused_on_both_ranks(stage, ended):
    case = ended[f"{stage}: in use"]
    assert case["statuses"] == [1, 1] and case["first end after last read"]
    assert "in use by process" in case["said"][0]
    assert case["said"][1] == case["said"][0].replace("error: ", "error: rank 0: ")


@pytest.mark.slow
@STAGES
def test_an_end_that_rank_0_cannot_write_is_told_to_the_other(stage, ended):
    case = ended[f"{stage}: the end cannot be written"]
    assert case["statuses"] == [1, 1]
    assert "error: rank 0: " in case["said"][1] and "cannot be written" in case["said"][1]
    assert "Traceback" not in "".join(case["said"])


@pytest.mark.slow
def test_a_look_at_the_data_ends_on_both_ranks_together(ended):
    case = ended["sft_2_ranks: only a look"]
    assert case["statuses"] == [0, 0] and case["first end after last read"]
    assert "data checked" in case["said"][0]


@pytest.mark.slow
@STAGES
def test_a_run_of_two_plain_ranks_ends_well(stage, ended):
    assert ended[f"{stage}: runs"]["statuses"] == [0, 0]
