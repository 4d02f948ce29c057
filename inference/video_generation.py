"""Which of two videos follows a caption better.

python inference/video_generation.py --model MODEL --prompt "a kite rises" --media a.mp4 b.mp4
python inference/video_generation.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
"""

from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    raise SystemExit(main("video_generation", about=__doc__))
