"""ShareGPTVideo: questions about a video with a chosen and a rejected answer, by a text model that read captions.

    python benchmark_evaluation/sharegpt_video.py --model MODEL --input heldout.jsonl --media-root FRAMES

Rows as in sft_dpo_17k.jsonl: video (a folder of frames), prompt, chosen, rejected. Which rows the paper tested on is
not published, nor a script: hold out whole videos that training never saw. "paper" is the rule of its other scripts.
"""

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.benchmark import run_benchmark
from unifiedreward_think.evaluation.parity import gold_anywhere, samples, share
from unifiedreward_think.intervals import Rate
from unifiedreward_think.records import PreferenceRecord


def to_record(row, media):
    """The chosen answer is stored first; the order shown is drawn."""
    video, question, chosen, rejected = row.pick("video", "prompt", "chosen", "rejected")
    if not all(isinstance(text, str) for text in (question, chosen, rejected)):
        raise RecordError("prompt, chosen and rejected must be strings")
    return PreferenceRecord(
        id=str(row.values.get("id", row.number)),
        task="video_understanding",
        prompt=question.replace("<video>", "").strip(),
        media=((media(video),),),
        answers=(chosen, rejected),
        preferred=1,
        source="sharegpt_video",
        group=video,
    )


def aggregate(judgments, tie_margin):
    found = [bool(gold_anywhere(rows[0])) for rows in samples(judgments, order="drawn").values()]
    return {"paper": {"accuracy": share(Rate(sum(found), len(found)))}}


def main(arguments=None, backend=None):
    return run_benchmark(
        "sharegpt_video",
        to_record=to_record,
        aggregate=aggregate,
        data=None,
        about=__doc__,
        arguments=arguments,
        backend=backend,
    )


if __name__ == "__main__":
    run_main(main)
