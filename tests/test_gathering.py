"""Rewards that compare rows: groups that lie on several processes are rewarded as on one."""

import json
import sys

import pytest

from helpers import gathered_rewards
from helpers.processes import checked
from unifiedreward_think.gathering import gathered


def test_without_an_accelerator_rows_are_those_of_this_process():
    assert gathered(("a", "b")) == (["a", "b"], slice(0, 2))
    assert gathered([]) == ([], slice(0, 0))


def test_rewards_of_groups_on_one_process_are_worked_out_by_hand():
    found = gathered_rewards.all_rewards(list)
    assert found["points"] == [1.0, 0.25, 1.0, 0.75, 0.0, 0.5, None]
    assert found["logged"] == [("scores_without_their_pair", pytest.approx(1 / 6))]
    assert found["swapped"] == [1.0, 0.0, 0.0, 0.5, 0.0, 0.5]
    assert found["ranked"] == [0.0, 0.5, 0.0, 1.0, 1.0]
    assert found["asked"][:2] == [("kite?", ["aa", "bbbb", "cccccc"]), ("boat?", ["cc", "dddd"])]


@pytest.mark.slow
def test_two_processes_reward_groups_that_lie_on_both_as_one_process_does(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    said = checked([*command, "tests/helpers/gathered_rewards.py", tmp_path])
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = json.loads(json.dumps(gathered_rewards.all_rewards(list)))
    for name in ("points", "swapped", "ranked"):
        assert first[name] + second[name] == alone[name], name
    assert first["asked"][:2] == alone["asked"][:2] and second["asked"] == []  # each group once, by its first process
    assert first["logged"] == second["logged"] == alone["logged"]
    assert first["refused"] == second["refused"] == "the server refuses an answer"
    assert said.count("1 of 6 scores have no reward") == 1
