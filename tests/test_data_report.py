"""The report counts every row, and its token counts are those of the real processors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers import data_sources
from helpers.data import imported, save, stored
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.report import main
from unifiedreward_think.data.tokens import TokenCounter, picture_size
from unifiedreward_think.records import PreferenceRecord, Trace

TOY = Path(__file__).parents[1] / "src" / "unifiedreward_think" / "toy" / "base"
SHAPES = [(240, 320), (333, 100), (28, 28), (31, 200)]  # height, width


@pytest.fixture(scope="session")
def processors(test_data, tmp_path_factory):
    """Folders of the published processors of Qwen2.5-VL and Qwen3-VL."""
    root = tmp_path_factory.mktemp("processors")
    script = test_data / "qwen_processors" / "materialize.py"
    names = ("Qwen2.5-VL-7B-Instruct", "Qwen3-VL-8B-Instruct")
    for name in names:
        subprocess.run([sys.executable, script, name, root / name], check=True)
    return [str(root / name) for name in names]


def test_a_row_has_the_tokens_the_published_processors_make_of_it(processors):
    from transformers import AutoProcessor

    content = [{"type": "text", "text": "Caption: a red kite\nFirst: "}]
    for _ in SHAPES:
        content += [{"type": "image", "text": None}, {"type": "text", "text": "\nNext: "}]
    images = [Image.new("RGB", (width, height)) for height, width in SHAPES]
    counted = {}
    for name in processors:
        processor = AutoProcessor.from_pretrained(name)
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        whole = processor(text=[text + data_sources.COT], images=images)["input_ids"][0]
        assert TokenCounter(name).count(content, SHAPES, data_sources.COT) == len(whole)
        counted[name] = len(whole)
    assert len(set(counted.values())) == 2


def test_a_folder_without_a_processor_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        TokenCounter(str(tmp_path))


def test_the_size_of_a_picture_is_that_of_the_upright_picture(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert picture_size(tmp_path / "turned.jpg") == (40, 20)
    assert picture_size(tmp_path / "plain.png") == (20, 40)


def report(folders, output, *options):
    main(["--input", *map(str, folders), "--output", str(output), "--frames", "2", *options])
    return output.read_text()


def test_the_page_counts_sources_labels_ties_and_removals_and_opens_offline(tmp_path, capsys):
    for name in ("hpd", "llava_critic", "unifiedreward_v1_videos", "imagegen_cot_reward_5k"):
        imported(name, tmp_path / name)
    folders = [tmp_path / name / "out" for name in ("hpd", "llava_critic", "unifiedreward_v1_videos")]
    page = report([*folders, tmp_path / "imagegen_cot_reward_5k" / "out"], tmp_path / "page" / "report.html")
    text = re.sub(r"<[^>]+>", " ", page)
    text = " ".join(text.split())
    assert "48 rows in" in text
    assert "llava_critic image understanding 12" in text
    assert re.search(r"llava_critic image understanding 12 \d+ \d+ 4 ", text)
    assert "hpd image generation 12" in text
    assert "GPT-4o" in text
    assert page.count("<article") == 12
    assert 'src="data:image/png;base64,' in page  # drawings keep their pixels
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert f"Made by import From {tmp_path}" in text and "sha256" in text and "Commit" in text
    assert "<script" not in page


def test_the_page_says_which_share_of_rows_fits_which_context_of_any_processor(tmp_path, capsys):
    imported("hpd", tmp_path)
    page = report([tmp_path / "out"], tmp_path / "report.html", "--processor", str(TOY))
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "base 100.0% 100.0% 100.0% 100.0% 100.0%" in text
    assert "Tokens with base" in text


def test_every_source_and_task_is_among_the_pairs_that_are_shown(tmp_path, capsys):
    ask = {"task": "image_understanding", "source": "small"}
    rows = [*(stored(i) for i in range(60)), stored(1, **ask), stored(2, source="small")]
    page = report([save(tmp_path / "in", rows)], tmp_path / "report.html", "--examples", "4")
    shown = re.findall(r"<summary><span>(\w+)-\d+</span><span>([\w ]+)</span>", page)
    kinds = [("hpd", "image generation"), ("small", "image generation"), ("small", "image understanding")]
    assert shown == [*kinds, ("hpd", "image generation")]


def test_a_source_whose_first_candidate_is_always_preferred_is_marked(tmp_path, capsys):
    rows = [stored(i) for i in range(0, 40, 2)]  # all prefer the first
    page = report([save(tmp_path / "in", rows)], tmp_path / "report.html")
    assert re.search(r'class="off">100\.0%', page)
    balanced = [stored(i) for i in range(40)]
    page = report([save(tmp_path / "balanced", balanced)], tmp_path / "report.html")
    assert 'class="off"' not in page


def test_what_a_caption_says_is_shown_as_text_and_missing_media_are_named(tmp_path, capsys):
    record = PreferenceRecord(
        id="<b>x</b>",
        task="image_generation",
        prompt="<script>alert(1)</script>",
        media=(("/nowhere/a.png",), ("/nowhere/b.png",)),
        preferred=1,
    )
    page = report([save(tmp_path / "in", [Trace(record=record)])], tmp_path / "report.html")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "/nowhere/a.png: no such file" in page
    assert "2 unreadable media" in page


@pytest.mark.parametrize("command", ["", "import", "check", "split", "export", "report", "distill"])
def test_help_needs_no_heavy_library(command):
    code = (
        "import sys; from unifiedreward_think.data.__main__ import main\n"
        f"try: main({[command, '--help'] if command else ['--help']})\n"
        "except SystemExit: pass\n"
        "print('LOADED', *{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    help_text, _, loaded = done.stdout.rpartition("LOADED")
    assert "unifiedreward_think.data" in help_text
    assert set(loaded.split()).isdisjoint({"torch", "transformers", "datasets", "trl", "pyarrow", "PIL", "openai"})


def test_an_unknown_command_is_named(capsys):
    from unifiedreward_think.data.__main__ import main as command

    with pytest.raises(SystemExit):
        command(["imprt"])
    assert "invalid choice: 'imprt'" in capsys.readouterr().err
