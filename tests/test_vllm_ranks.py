"""Rejection sampling by a real vLLM in each of two ranks writes the files of one process with transformers."""

import json
import sys
from collections import Counter

import pytest

from helpers.processes import checked, environment
from helpers.vllm_cpu import JUDGE, MAX_LENGTH, PYTHON, REPO, compared, vllm_environment
from unifiedreward_think.judging.store import load_judgments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_two_ranks_with_an_engine_each_keep_what_one_process_of_transformers_keeps(needs_vllm, toy_world, tmp_path):
    """The draws are the same, too: both take the largest of probabilities over exponential numbers of the seed."""
    words = ["--config", "configs/toy/rejection_sampling.yaml", "--model_name_or_path", JUDGE, "--limit", 24]
    words += ["--train_files", toy_world / "train.jsonl", "--frame_cache", toy_world / "frames", "--batch_size", 4]
    one, two = tmp_path / "one", tmp_path / "two"
    checked([sys.executable, "-m", "unifiedreward_think.training.rejection_sampling", *words, "--output_dir", one])
    # Another 2 ranks of another launch must not take the port of this one: torchrun chooses one.
    launch = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    stage = [REPO / "scripts" / "bench" / "sampling.py", "--stage", *words, "--output_dir", two]
    vllm = ["--backend", "vllm", "--max_model_len", MAX_LENGTH]
    said = checked([*launch, *stage, *vllm], **{**environment(), **vllm_environment()})
    assert said.count("rejection_sampling: ") == 1  # rank 0 speaks
    for name in ("kept.jsonl", "hard.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    counts = [json.loads((folder / "manifest.json").read_text())["counts"] for folder in (one, two)]
    assert counts[0] == counts[1] and counts[0]["samples"] == 24 * 4 and counts[0]["kept"] > 12
    rows = [list(load_judgments(folder / "judgments.jsonl").values()) for folder in (one, two)]
    assert compared(rows[0]) == compared(rows[1]) and not list(two.glob("judgments*.rank*"))
    texts = Counter((row.record_id, row.completion) for row in rows[0])
    assert len(texts) > 1.5 * 24  # the draws of a pair differ
