"""Compare two runs by an exact paired test on the rows that both judged: `rescore --compare` under its own name.

python -m unifiedreward_think.evaluation.compare outputs/toy/seed0/eval/base outputs/toy/seed0/eval/grpo
"""

from __future__ import annotations

import argparse

from unifiedreward_think.entry import run_main
from unifiedreward_think.evaluation import rescore


def main() -> None:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="folder with judgments.jsonl")
    parser.add_argument("b", metavar="B", help="folder of the run to test it against")
    parser.add_argument("--style", choices=["cot", "direct"], default="cot", help="of rows that do not name theirs")
    args = parser.parse_args()
    rescore.main(["--compare", args.a, args.b, "--style", args.style])


if __name__ == "__main__":
    run_main(main)
