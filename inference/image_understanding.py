"""Which of two answers to a question about a picture is better.

python inference/image_understanding.py --model MODEL --question "Colour?" --media a.png --answers Red. Blue.
python inference/image_understanding.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
"""

from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    raise SystemExit(main("image_understanding", about=__doc__))
