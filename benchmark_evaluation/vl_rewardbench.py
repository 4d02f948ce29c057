"""VL-RewardBench: 1,250 questions about a picture with two answers, in three groups.

    python benchmark_evaluation/vl_rewardbench.py --model MODEL
    python benchmark_evaluation/vl_rewardbench.py --model MODEL --samples 9 --temperature 0.2 --top-p 0.2  # K = 1 ... 9

Official: majority of K samples, each in a random order (so judge both orders); groups of 183/749/318. Paper: one
sample, the gold sentence anywhere in the output; groups of 631/301/318.
"""

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.benchmark import run_benchmark
from unifiedreward_think.evaluation.parity import (
    VL_VOTES,
    gold_anywhere,
    samples,
    vl_group,
    vl_rewardbench,
    vl_rewardbench_paper,
)
from unifiedreward_think.evaluation.sources import unique_id
from unifiedreward_think.records import PreferenceRecord


def to_record(row, media):
    """human_ranking holds ranks: [0, 1] prefers the first response. 25 ids occur twice, with other responses."""
    name, query, responses, image, ranking = row.pick("id", "query", "response", "image", "human_ranking")
    if len(responses) != 2 or sorted(ranking) != [0, 1]:
        raise RecordError(f"needs 2 responses and a ranking of 0 and 1, found {len(responses)} and {ranking}")
    return PreferenceRecord(
        id=unique_id(name, query, *sorted(responses)),
        task="image_understanding",
        prompt=query.replace("<image>", "").strip(),
        media=((media(image),),),
        answers=tuple(responses),
        preferred=1 if ranking[0] == 0 else 2,
        source="vl_rewardbench",
        group=name,
    )


def aggregate(judgments, tie_margin):
    drawn = samples(judgments, order="drawn")
    votes = {name: [None if r.choice is None else r.correct for r in rows] for name, rows in drawn.items()}
    most = max(map(len, drawn.values()))
    return {
        "official": {f"k{k}": vl_rewardbench(votes, k=k) for k in VL_VOTES if k <= most},
        "paper": vl_rewardbench_paper({name: bool(gold_anywhere(rows[0])) for name, rows in drawn.items()}),
    }


def main(arguments=None, backend=None):
    return run_benchmark(
        "vl_rewardbench",
        to_record=to_record,
        aggregate=aggregate,
        group=lambda record: vl_group(record.id),
        data="MMInstruction/VL-RewardBench",
        about=__doc__,
        arguments=arguments,
        backend=backend,
    )


if __name__ == "__main__":
    run_main(main)
