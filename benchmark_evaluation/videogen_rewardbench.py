"""VideoGen-RewardBench: 26.5k pairs of videos of 12 models with a human label, overall quality.

    python benchmark_evaluation/videogen_rewardbench.py --model MODEL --media-root FOLDER     # that holds videos/

Official: accuracy with and without ties from the difference of the score sums, as VideoAlign's script computes them
(its labels VQ, MQ and TA need a score of their own). Paper: which sentence comes first, a tie if there is none;
accuracy_without_ties is its "diff". Its later script looks for the gold sentence among pairs with a winner. All of them
show A first.
"""

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.benchmark import run_benchmark
from unifiedreward_think.evaluation.parity import exact_match, first_named, gold_anywhere, samples, share
from unifiedreward_think.evaluation.ties import ties
from unifiedreward_think.intervals import Rate
from unifiedreward_think.records import PreferenceRecord

PREFERRED = {"A": 1, "B": 2, "same": "tie", "": None}


def to_record(row, media):
    """A row without a label is judged, and counted as unlabelled."""
    prompt, first, second, label = row.pick("prompt", "path_A", "path_B", "Overall")
    label = (label or "").strip()
    if label not in PREFERRED:
        raise RecordError(f"Overall is {label!r}; expected A, B or same")
    return PreferenceRecord(
        id=str(row.number),
        task="video_generation",
        prompt=prompt,
        media=((media(first),), (media(second),)),
        preferred=PREFERRED[label],
        source="videogen_rewardbench",
        group=prompt,
    )


def aggregate(judgments, tie_margin):
    labelled = [row for row in judgments if row.preferred is not None]
    stored = [rows[0] for rows in samples(labelled, order="stored").values()]
    gold = [found for row in stored if (found := gold_anywhere(row)) is not None]
    margins = ties(labelled, tie_margin=tie_margin)
    return {
        "official": {
            "with_ties": margins["single"]["with_ties_videoalign"],
            "without_ties": margins["single"]["without_ties"],
        },
        "paper": {
            **exact_match([first_named(row) for row in stored], [row.preferred for row in stored]),
            "gold_anywhere": share(Rate(sum(gold), len(gold))),
        },
        "ties": margins,
    }


def main(arguments=None, backend=None):
    return run_benchmark(
        "videogen_rewardbench",
        to_record=to_record,
        aggregate=aggregate,
        data="KwaiVGI/VideoGen-RewardBench",
        split="eval",
        about=__doc__,
        arguments=arguments,
        backend=backend,
    )


if __name__ == "__main__":
    run_main(main)
