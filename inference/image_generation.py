"""Which of two images follows a caption better; with --form pointwise, how good one is.

python inference/image_generation.py --model MODEL --prompt "a red kite" --media a.png b.png
python inference/image_generation.py --model MODEL --input pairs.jsonl --output outputs/judgments.jsonl
python inference/image_generation.py --model MODEL --form pointwise --prompt "a red kite" --media a.png
"""

import sys

from unifiedreward_think.entry import run_main
from unifiedreward_think.judging.command import main

if __name__ == "__main__":
    run_main(lambda: sys.exit(main("image_generation", about=__doc__)))
