"""Fixtures shared by the tests: tiny models of every family, a small toy data set, the folder of real test data."""

import os
from pathlib import Path

import hypothesis
import pytest

# Tiny tensors are ten times slower on several threads; nothing here may ask the Hub. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

# What tests share or start as processes; pytest would import it for doctests, and second_choice replaces a function.
collect_ignore_glob = ["[!t]*.py", "t[!e]*.py"]

# No deadline: the first example may import a library, and a machine may be busy.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

REPO = Path(__file__).parents[1]
TOY_PROMPTS = REPO / "configs" / "toy" / "prompts"


# What accelerate writes into the environment when it trains in this process, perhaps for a fixture of a whole module.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def environment_as_found():
    """No test sees what another has left in the environment."""
    for name in LAUNCHER:
        os.environ.pop(name, None)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Family -> folder of a random model of that architecture."""
    from unifiedreward_think.models import tiny
    from unifiedreward_think.prompting import load_prompts

    root = tmp_path_factory.mktemp("models")
    for family in tiny.FAMILIES:
        tiny.build(family, root / family, corpus=load_prompts("cot", folder=TOY_PROMPTS).values())
    return {family: root / family for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """Toy world with cold_start.jsonl, train.jsonl and heldout.jsonl: two pairs of each task, one held out."""
    from unifiedreward_think.toy import dataset

    root = tmp_path_factory.mktemp("toy-data")
    dataset.write(root, cold_start=8, train=8, heldout=4)
    return root


@pytest.fixture(scope="session")
def test_data():
    """Folder of real, human-labelled samples, named by UNIFIEDREWARD_TEST_DATA."""
    folder = os.environ.get("UNIFIEDREWARD_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNIFIEDREWARD_TEST_DATA names no folder")
    return Path(folder)
