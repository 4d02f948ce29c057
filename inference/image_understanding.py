"""Which of two answers to a question about a picture is better; with --form pointwise, how good one is.

python inference/image_understanding.py --model MODEL --question "Colour?" --media a.png --answers Red. Blue.
python inference/image_understanding.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
python inference/image_understanding.py --model MODEL --form pointwise --question "Colour?" --media a.png --answers Red.
"""

import sys

from unifiedreward_think.entry import run_main
from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    run_main(lambda: sys.exit(main("image_understanding", about=__doc__)))
