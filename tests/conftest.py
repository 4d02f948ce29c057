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
collect_ignore_glob = ["helpers/*"]

# No deadline: the first example may import a library, and a machine may be busy.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

REPO = Path(__file__).parents[1]
# In CI any other skip is a failure: what a test needs is installed there.
ALLOWED_SKIPS = (
    "UNIFIEDREWARD_TEST_DATA names no folder",  # real data cannot be committed
    "the system has no /dev/full",  # Linux has it
)
TOY_PROMPTS = REPO / "configs" / "toy" / "prompts"


# What accelerate writes into the environment when it trains in this process, perhaps for a fixture of a whole module.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let a test that skips in CI fail, with what it lacks."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if reason not in ALLOWED_SKIPS:
            report.outcome, report.longrepr = "failed", f"skipped in CI: {reason}"
    return report


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
        tiny.build(family, root / family, corpus=load_prompts("cot", path=TOY_PROMPTS).values())
    return {family: root / family for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """Toy world with cold_start.jsonl, train.jsonl and heldout.jsonl: two pairs of each task, one held out."""
    from unifiedreward_think.toy import dataset

    root = tmp_path_factory.mktemp("toy-data")
    dataset.write(root, cold_start=8, train=8, heldout=4)
    return root


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory):
    """Toy world with 160 held-out pairs, those of every `toy.dataset` with seed 0, the tasks in turn."""
    from unifiedreward_think.toy import dataset

    root = tmp_path_factory.mktemp("toy-world")
    dataset.write(root, cold_start=0, train=40, heldout=160)
    return root


@pytest.fixture(scope="module")
def chromium():
    """A browser, of a module and not of the session: while it is open, no other test could run an event loop."""
    from helpers.browser import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def needs_vllm():
    """A real vLLM on the CPU."""
    from helpers.vllm_cpu import available

    if not available():
        pytest.skip("no .venv-vllm; make it with: bash scripts/vllm_cpu.sh")


@pytest.fixture(scope="session")
def vllm_judge(needs_vllm, tmp_path_factory):
    """The toy judge in a vLLM server, up until the end of the run."""
    from helpers.vllm_cpu import JUDGE, vllm_serving

    with vllm_serving(JUDGE, tmp_path_factory.mktemp("vllm") / "log.txt") as server:
        yield server


@pytest.fixture(scope="session")
def test_data():
    """Folder of real, human-labelled samples, named by UNIFIEDREWARD_TEST_DATA."""
    folder = os.environ.get("UNIFIEDREWARD_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNIFIEDREWARD_TEST_DATA names no folder")
    return Path(folder)
