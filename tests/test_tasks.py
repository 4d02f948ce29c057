"""From a record to what the model reads: prompts, orders, custom templates, and the wording that ships."""

import hashlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.forms import PAIRWISE
from unifiedreward_think.order import ORDERS
from unifiedreward_think.prompting import PROMPTS, Media, build_parts, load_prompts
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASK_NAMES, TASKS
from unifiedreward_think.verdict import NOUNS, parse

TOY_PROMPTS = Path(__file__).parents[1] / "configs" / "toy" / "prompts"
NASTY = "a {red} kite {media_1} {format} {prompt} {answer_2} {} {0} %s \\1 $x {{media}} <image>"
SHOWN = NASTY.replace("<image>", "< image>")  # a control token of LLaVA's (`plain_text`)
FORMS = [("cot", "one_line"), ("cot", "three_line"), ("direct", "one_line")]

# A prompt is part of every trained model and every published number: change one on purpose only, and write its new
# sum here (`sha256sum`) in the same commit.
PROMPT_SUMS = {
    "package": {
        "format_cot_one_line.txt": "d6bb0243a4ce6d3bf31b49dd7dbe42d72c5d7ef04a4d8a7d4cde66e0bd461a8e",
        "format_cot_three_line.txt": "2892949c266ff501f0052eab87c909426066f3916fc8efaa463d738af2f08ff7",
        "format_direct.txt": "34f1c2ef28ef1b5b14d76f39d41957e6d8acae5a69fd6aca63ae51aebbfd481d",
        "image_generation.txt": "6c2f7f1bde13ffb59a3fc618319061f5382e1956ec9e745c5a6b002ec1690520",
        "image_understanding.txt": "4fa891b702b943dca9cfe0f2d5aa1a66a0ba5ec2ccb67f2556c7b7c3fb483f8f",
        "video_generation.txt": "ebdb393be3a20bf5676f8ff23bb3d03f08f8263281e3d6c4e07e13782c5c891f",
        "video_understanding.txt": "36622f5a3f3452d7eeeba2593d0fa16391aad11d5749bb223e230344b39d75a1",
        "pointwise/format_cot_one_line.txt": "ec3f5c9be5b234e9934a482ea047472f498cd2805c75ef429d44f958a278d93b",
        "pointwise/format_cot_three_line.txt": "f0c0b2f626025eceacdf45431f958edfc673b076df8376e462b87b67d2170ac1",
        "pointwise/format_direct.txt": "a12670b7cc225221a88d7bd3097e145e4ef3b4658cd3acb7ce011f9e8cd12b8a",
        "pointwise/image_generation.txt": "5610f6df387b220d769c602e2a2562b44a12936084165b00c8789c2e40ff31e7",
        "pointwise/image_understanding.txt": "455f06185bc829734a3ab642446251bae8d9c0a43086c1e916ce8c976291c5fc",
        "pointwise/video_generation.txt": "69e39ce449e842a03bb060cb040f2e921c142a438fde705eb8d97bbcd7ef6e2d",
        "pointwise/video_understanding.txt": "49a227a5606e7fcc77dfff48fee6ef6620b93466d4725c318cc2bf0d018099f9",
    },
    "toy": {
        "format_cot_one_line.txt": "b799ee44615823abc13b3412eedb7f5b04b9f02eda10df7fd743dae7672a8e79",
        "format_direct.txt": "879148f2cf910de30b87e5e685a0f9ba28b700473c1b5b25fb52ede400c5c9f6",
        "image_generation.txt": "176bce772b561eb57f0f3fd0604e4e2f18e8d9d2579519ab97d89e99ffd15451",
        "image_understanding.txt": "239ec5854f993c415984b8c1e2aa853fa449dbd3f5cba12734e430f74a40e25c",
        "video_generation.txt": "0252eb785e27c8ae422ebd8bb123ada89a5a7c1ca0f686d714b443f15630d8cd",
        "video_understanding.txt": "38a54bf76ad714357fdf4690c2adce5e505923b7fa14f238f4ba5dad9c5bf629",
        "pointwise/format_cot_one_line.txt": "40bddb6c24620b46c4a54b506da752bc2645ac7bd75ab154488668968d2bf5a2",
        "pointwise/format_direct.txt": "09d2bf4d33dfa85c75ffce612991c15dd2f676f757b32fca5eeec999b6160e6f",
        "pointwise/image_generation.txt": "dac71f50b4662b7c2743c142301d8e0e0f11efce820eb26afa584197ad032e53",
        "pointwise/image_understanding.txt": "6cd097c0bfc996e683e4f895b3fe63e59d78566aef3295ef99361239fa4192cb",
        "pointwise/video_generation.txt": "40084b224ddcb2e372dddf4e31fb564209b133a774de1c881c422c75b8490a1c",
        "pointwise/video_understanding.txt": "d2295dd8b6f187827c294b1d8ee2c47bb6ed8994651e166d637f8641e680510d",
    },
}


def image_pair(**change):
    record = PreferenceRecord(
        id="kite-1", task="image_generation", prompt="a red kite", media=(("a.png",), ("b.png",)), preferred=1
    )
    return replace(record, **change)


def question(**change):
    record = PreferenceRecord(
        id="q-1", task="image_understanding", prompt="What?", media=(("a.png",),), answers=("A kite.", "A cow.")
    )
    return replace(record, **change)


def any_record(task, **change):
    return replace(image_pair() if TASKS[task].compares_media else question(), task=task, **change)


def paths(parts):
    return [part.paths for part in parts if isinstance(part, Media)]


def text(parts):
    return "".join("<MEDIA>" if isinstance(part, Media) else part for part in parts)


def custom(folder, **templates):
    for name, template in templates.items():
        (folder / f"{name}.txt").write_text(template, encoding="utf-8")
    return load_prompts(path=folder)


def test_every_task_of_the_records_is_described():
    assert tuple(TASKS) == TASK_NAMES
    assert {task.noun for task in TASKS.values()} == set(NOUNS)


@pytest.mark.parametrize("folder", [PROMPTS, TOY_PROMPTS])
def test_a_changed_prompt_is_a_conscious_change(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    sums = {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert sums == PROMPT_SUMS["toy" if folder == TOY_PROMPTS else "package"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("folder", [None, TOY_PROMPTS])
def test_captions_and_answers_are_filled_in_literally(task, order, folder):
    record = any_record(task, prompt=NASTY)
    if record.answers:
        record = replace(record, answers=(NASTY + " A", NASTY + " B"))
    said = text(build_parts(record, order=order, prompts=load_prompts(path=folder)))
    assert said.count(SHOWN) == 1 + len(record.answers)
    rest = said.replace(SHOWN, "")
    assert not re.search(r"\{\w*\}", rest), rest


@pytest.mark.parametrize("style", ["cot", "direct"])
def test_the_candidates_change_places_and_nothing_else_does(style):
    prompts = load_prompts(style)
    ab, ba = (build_parts(image_pair(), order=order, prompts=prompts) for order in ORDERS)
    assert paths(ab) == [("a.png",), ("b.png",)] and paths(ba) == [("b.png",), ("a.png",)]
    assert text(ab) == text(ba)
    ab, ba = (text(build_parts(question(), order=order, prompts=prompts)) for order in ORDERS)
    assert "Answer 1: A kite.\n" in ab and "Answer 2: A cow.\n" in ab
    assert "Answer 1: A cow.\n" in ba and "Answer 2: A kite.\n" in ba
    assert ab.replace("A kite.", "").replace("A cow.", "") == ba.replace("A kite.", "").replace("A cow.", "")


def test_several_pictures_of_one_question_keep_their_order():
    record = question(media=(("a.png",), ("b.png",)))
    for prompts in (load_prompts(), {record.task: "{prompt}"}, {record.task: "{media_1}{prompt}{media_2}"}):
        for order in ORDERS:
            assert paths(build_parts(record, order=order, prompts=prompts)) == [("a.png",), ("b.png",)]


def test_media_stand_where_the_template_names_them():
    parts = build_parts(image_pair(), order="ab", prompts=load_prompts())
    places = {part.paths: before for before, part in itertools.pairwise(parts) if isinstance(part, Media)}
    assert places[("a.png",)].endswith("Image 1: ") and places[("b.png",)].endswith("Image 2: ")
    assert all(isinstance(part, str) != isinstance(after, str) for part, after in itertools.pairwise(parts))


def test_frames_stay_one_video_in_order():
    frames = (("1.png", "2.png", "3.png"), ("4.png", "5.png"))
    parts = build_parts(any_record("video_generation", media=frames), order="ba", prompts=load_prompts())
    assert [part for part in parts if isinstance(part, Media)] == [Media(frames[1], "video"), Media(frames[0], "video")]


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_names_the_tasks_dimensions_and_answers(task):
    noun = TASKS[task].noun
    said = text(build_parts(any_record(task), order="ab", prompts=load_prompts()))
    assert all(said.count(dimension) >= 2 for dimension in TASKS[task].dimensions)
    assert f"<answer>{noun} 1 is better</answer>" in said and f"<answer>{noun} 2 is better</answer>" in said
    direct = text(build_parts(any_record(task), order="ab", prompts=load_prompts("direct")))
    assert "<think>" not in direct and f"<answer>{noun} 2 is better</answer>" in direct


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("style", "layout"), FORMS)
def test_the_form_a_prompt_asks_for_is_the_form_the_parser_takes(task, style, layout):
    template = load_prompts(style, layout=layout)[task]
    start = "<think>\n" if style == "cot" else "<answer>"
    example = template[template.index(start) :].partition(" or <answer>")[0]
    for k, score in ((1, 7), (2, 4)):
        example = example.replace(f" {k} (score/10)", f" {k} ({score}/10)")
        example = example.replace(f" {k}: score+score+score=total", f" {k}: {score}+{score}+{score}={3 * score}")
    verdict = parse(example, TASKS[task].noun, style=style)
    assert verdict.strict and verdict.winner == 1 and verdict.problems == ()
    if style == "cot":
        assert verdict.dimensions == tuple((name, (7, 4)) for name in TASKS[task].dimensions)
        assert verdict.totals == (21, 12) and verdict.arithmetic_ok


def test_the_two_layouts_and_direct_differ():
    assert len({load_prompts(style, layout=layout)["image_generation"] for style, layout in FORMS}) == 3
    assert load_prompts("direct", layout="three_line") == load_prompts("direct")


def test_media_come_first_where_a_template_places_none(tmp_path):
    prompts = custom(
        tmp_path, image_generation="Caption: [{prompt}]", image_understanding="{prompt} {answer_1}/{answer_2}"
    )
    assert build_parts(image_pair(), order="ba", prompts=prompts) == [
        Media(("b.png",), "image"),
        Media(("a.png",), "image"),
        "Caption: [a red kite]",
    ]
    assert build_parts(question(), order="ba", prompts=prompts) == [Media(("a.png",), "image"), "What? A cow./A kite."]


def test_a_folder_of_ones_own_need_not_cover_every_task(tmp_path):
    prompts = custom(
        tmp_path, image_generation="{media_2}{prompt} {format}{noun}", format_cot_one_line="{dimension_2}!"
    )
    assert list(prompts) == ["image_generation"]
    parts = build_parts(image_pair(), order="ab", prompts=prompts)
    assert parts == [Media(("b.png",), "image"), "a red kite Aesthetics!Image"]
    with pytest.raises(RecordError, match="record 'q-1': no prompt template for task image_understanding"):
        build_parts(question(), order="ab", prompts=prompts)


def test_a_folder_without_templates_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no prompt template here; expected files named image_generation\.txt"):
        load_prompts(path=tmp_path)


def test_a_template_without_its_format_file_is_refused(tmp_path):
    (tmp_path / "image_generation.txt").write_text("{prompt} {format}", encoding="utf-8")
    with pytest.raises(InputError, match=r"format_direct\.txt: no such file; image_generation\.txt asks for it"):
        load_prompts("direct", path=tmp_path)


@pytest.mark.parametrize(
    ("name", "template", "absent"),
    [
        ("image_generation", "Which image is better?", "{prompt}"),
        ("video_generation", "{caption}", "{prompt}"),
        ("image_understanding", "{prompt} {answer_1}", "{answer_2}"),
    ],
)
def test_a_template_that_would_hide_the_candidates_is_refused(tmp_path, name, template, absent):
    with pytest.raises(InputError, match=re.escape(f"{name}.txt: the template has no {absent}")):
        custom(tmp_path, **{name: template})


@pytest.mark.parametrize(
    ("record", "template", "absent"),
    [(image_pair(), "{prompt}{answer_1}", "{answer_1}"), (question(), "{media_2}{prompt}", "{media_2}")],
)
def test_a_placeholder_the_record_cannot_fill_is_named(record, template, absent):
    with pytest.raises(RecordError, match=re.escape(f"record {record.id!r}: the template asks for {absent}")):
        build_parts(record, order="ab", prompts={record.task: template})


def test_a_ready_made_instruction_is_used_word_for_word():
    record = image_pair(instruction=NASTY)
    assert build_parts(record, order="ba", prompts={}) == [
        Media(("b.png",), "image"),
        Media(("a.png",), "image"),
        SHOWN,
    ]
    asked = question(answers=(), instruction=NASTY)
    assert build_parts(asked, order="ab", prompts={}) == [Media(("a.png",), "image"), SHOWN]
    with pytest.raises(RecordError, match="record 'q-1': its instruction holds the answers; only order 'ab' works"):
        build_parts(asked, order="ba", prompts={})


@pytest.mark.parametrize(
    ("record", "order", "expected"),
    [
        (image_pair(), "ab", "Image 1 is better"),
        (image_pair(), "ba", "Image 2 is better"),
        (any_record("video_generation", preferred=2), "ba", "Video 1 is better"),
        (question(preferred=2), "ab", "Answer 2 is better"),
        (question(preferred="tie"), "ab", None),
        (question(), "ba", None),
    ],
)
def test_the_solution_is_the_gold_answer_in_the_order_shown(record, order, expected):
    assert PAIRWISE.solution_of(record, order) == expected
