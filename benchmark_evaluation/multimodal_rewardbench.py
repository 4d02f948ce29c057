"""Multimodal RewardBench: 5,000 questions with two answers in six areas (fewer without Hateful Memes).

    python benchmark_evaluation/multimodal_rewardbench.py --model MODEL --input all_data.json --media-root data

Official: the first answer of the file is shown first; what cannot be read is decided by a coin (seed 123); safety and
reasoning are split. all_data.json comes from 0_download_data.py of facebookresearch/multimodal_rewardbench; the Hub
name is an unofficial mirror.
"""

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.benchmark import run_benchmark
from unifiedreward_think.evaluation.parity import multimodal_rewardbench, samples
from unifiedreward_think.evaluation.sources import unique_id
from unifiedreward_think.evaluation.ties import said
from unifiedreward_think.records import PreferenceRecord

PREFERRED = {"Output1": 1, "Output2": 2}


def to_record(row, media):
    """The category is a column of the mirror and lies inside Meta in the original."""
    name, text, image, first, second, better = row.pick("ID", "Text", "Image", "Output1", "Output2", "Better")
    if better not in PREFERRED:
        raise RecordError(f"Better is {better!r}; expected Output1 or Output2")
    meta = row.values.get("Meta")
    category = meta["Category"] if isinstance(meta, dict) and "Category" in meta else row.pick("Category")[0]
    return PreferenceRecord(
        id=unique_id(name, text, first, second),
        task="image_understanding",
        prompt=text,
        media=((media(image),),),
        answers=(first, second),
        preferred=PREFERRED[better],
        source=f"multimodal_rewardbench/{category}",
        group=name,
    )


def category(row):
    return row.source.partition("/")[2]


def aggregate(judgments, tie_margin):
    stored = [rows[0] for rows in samples(judgments, order="stored").values()]
    return {"official": multimodal_rewardbench((r.record_id, category(r), said(r), r.preferred) for r in stored)}


def main(arguments=None, backend=None):
    return run_benchmark(
        "multimodal_rewardbench",
        to_record=to_record,
        aggregate=aggregate,
        group=category,
        data="syhuggingface/multimodal_rewardbench",
        about=__doc__,
        arguments=arguments,
        backend=backend,
    )


if __name__ == "__main__":
    run_main(main)
