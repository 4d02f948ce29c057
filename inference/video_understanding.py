"""Which of two answers to a question about a video is better; with --form pointwise, how good one is.

python inference/video_understanding.py --model MODEL --question "Where to?" --media a.mp4 --answers Up. Down.
python inference/video_understanding.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
python inference/video_understanding.py --model MODEL --form pointwise --question "Up?" --media a.mp4 --answers Yes.
"""

import sys

from unifiedreward_think.entry import run_main
from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    run_main(lambda: sys.exit(main("video_understanding", about=__doc__)))
