"""Which of two videos follows a caption better; with --form pointwise, how good one is.

python inference/video_generation.py --model MODEL --prompt "a kite rises" --media a.mp4 b.mp4
python inference/video_generation.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
python inference/video_generation.py --model MODEL --form pointwise --prompt "a kite rises" --media a.mp4
"""

import sys

from unifiedreward_think.entry import run_main
from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    run_main(lambda: sys.exit(main("video_generation", about=__doc__)))
