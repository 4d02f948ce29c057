"""GenAI-Bench, video generation: a caption with two videos and a human vote, ties of two kinds among them.

    python benchmark_evaluation/genai_bench_video.py --model MODEL                    # split test, as the paper
    python benchmark_evaluation/genai_bench_video.py --model MODEL --split test_v1    # as the official leaderboard

Official: accuracy over four labels, shown as in the file; --tie-margin lets the judge call ties.
Paper: which sentence comes first; "diff" is accuracy_without_ties; its scripts count every tie as wrong.
BaiqiL/GenAI-Bench is another benchmark.
Videos are links: with --media-root they are looked up there by name, without it they are fetched.
"""

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.benchmark import run_benchmark
from unifiedreward_think.evaluation.parity import exact_match, first_named, genai_bench, genai_verdict, samples
from unifiedreward_think.evaluation.ties import said, ties
from unifiedreward_think.records import PreferenceRecord

PREFERRED = {"leftvote": 1, "rightvote": 2, "tievote": "tie", "bothbad_vote": "tie"}


def to_record(row, media):
    """The Hub calls the videos left_video and right_video, the paper's data.json video_left and video_right."""
    names = ("video_left", "video_right") if "video_left" in row.values else ("left_video", "right_video")
    prompt, left, right, vote = row.pick("prompt", *names, "vote_type")
    if vote not in PREFERRED:
        raise RecordError(f"vote_type is {vote!r}; expected one of {', '.join(PREFERRED)}")
    return PreferenceRecord(
        id=str(row.values.get("id", row.number)),
        task="video_generation",
        prompt=prompt,
        media=((media(left),), (media(right),)),
        preferred=PREFERRED[vote],
        source=f"genai_bench_video/{vote}",
        group=prompt,
    )


def aggregate(judgments, tie_margin):
    stored = [rows[0] for rows in samples(judgments, order="stored").values()]
    drawn = [rows[0] for rows in samples(judgments, order="drawn").values()]
    votes = [(genai_verdict(said(row, tie_margin)), row.source.rpartition("/")[2]) for row in stored]
    named = [None if row.preferred == "tie" else first_named(row) for row in drawn]
    return {
        "official": genai_bench(votes),
        "paper": exact_match(named, [row.preferred for row in drawn]),
        "ties": ties(judgments, tie_margin=tie_margin),
    }


def main(arguments=None, backend=None):
    return run_benchmark(
        "genai_bench_video",
        to_record=to_record,
        aggregate=aggregate,
        data="TIGER-Lab/GenAI-Bench",
        subset="video_generation",
        about=__doc__,
        arguments=arguments,
        backend=backend,
    )


if __name__ == "__main__":
    run_main(main)
