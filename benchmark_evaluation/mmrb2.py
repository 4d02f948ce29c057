"""MMRB2: 1,000 pairs each of text-to-image, editing, interleaved and reasoning answers.

    python benchmark_evaluation/mmrb2.py --model MODEL                       # t2i, from the Hub
    python benchmark_evaluation/mmrb2.py --model MODEL --config edit
    python benchmark_evaluation/mmrb2.py --model MODEL --input benchmark      # a folder with t2i.json, edit.json, ...

Official: both orders count once each; what is missing or cannot be read leaves the denominator. Pairs of single
pictures are judged as images, with the pictures of the prompt before each of them; pairs of plain texts about a picture
as answers. Answers that mix text and pictures fit no task here: they are counted under left_out. Not for training.
"""

import re

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.benchmark import run_benchmark
from unifiedreward_think.evaluation.parity import mmrb2, share
from unifiedreward_think.records import PreferenceRecord

PREFERRED = {"A": 1, "B": 2}
PLACEHOLDER = re.compile(r"<image_\d+>")
EDIT = "The last picture of each candidate is the result, those before it were given. {}"


def contents(row):
    """Return (text, pictures) of the prompt and both responses, in the layout of the repository or of the Hub."""
    if "response_a" in row.values:
        prompt, first, second = row.pick("prompt_content", "response_a", "response_b")
        lists = [prompt, first["response_content"], second["response_content"]]
        return [
            ("\n".join(v for kind, v in parts if kind == "text").strip(), [v for kind, v in parts if kind == "image"])
            for parts in lists
        ]
    sides = ("prompt", "response_a", "response_b")
    texts, images = (row.pick(*(f"{side}_{kind}" for side in sides)) for kind in ("text", "images"))
    return [(PLACEHOLDER.sub("", t or "").strip(), list(i or [])) for t, i in zip(texts, images, strict=True)]


def to_record(row, media):
    """The READMEs say pair_id, the files id; the Hub may write chosen in lower case."""
    name, chosen = row.pick("id" if "id" in row.values else "pair_id", "chosen")
    if str(chosen).upper() not in PREFERRED:
        raise RecordError(f"chosen is {chosen!r}; expected A or B")
    (text, given), (first, first_images), (second, second_images) = contents(row)
    given = tuple(media(image) for image in given)
    common = {"id": name, "preferred": PREFERRED[chosen.upper()], "source": f"mmrb2/{row.part}", "group": text}
    if len(first_images) == len(second_images) == 1 and not (first or second):
        entries = tuple((*given, media(image)) for image in (*first_images, *second_images))
        prompt = EDIT.format(text) if given else text
        return PreferenceRecord(task="image_generation", prompt=prompt, media=entries, **common)
    if given and first and second and not (first_images or second_images):
        entries = tuple((image,) for image in given)
        return PreferenceRecord(
            task="image_understanding", prompt=text, media=entries, answers=(first, second), **common
        )
    return None


def part(row):
    return row.source.partition("/")[2]


def aggregate(judgments, tie_margin):
    parts = {name: [row for row in judgments if part(row) == name] for name in sorted(set(map(part, judgments)))}
    return {
        "official": {**{name: share(mmrb2(rows)) for name, rows in parts.items()}, "overall": share(mmrb2(judgments))}
    }


def main(arguments=None, backend=None):
    return run_benchmark(
        "mmrb2",
        to_record=to_record,
        aggregate=aggregate,
        group=part,
        data="rl-research/multimodal-rewardbench-2",
        subset="t2i",
        about=__doc__,
        arguments=arguments,
        backend=backend,
    )


if __name__ == "__main__":
    run_main(main)
