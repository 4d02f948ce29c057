"""Which of two images follows a caption better.

python inference/image_generation.py --model MODEL --prompt "a red kite" --media a.png b.png
python inference/image_generation.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
"""

from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    raise SystemExit(main("image_generation", about=__doc__))
