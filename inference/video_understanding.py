"""Which of two answers to a question about a video is better.

python inference/video_understanding.py --model MODEL --question "Where to?" --media a.mp4 --answers Up. Down.
python inference/video_understanding.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
"""

from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    raise SystemExit(main("video_understanding", about=__doc__))
