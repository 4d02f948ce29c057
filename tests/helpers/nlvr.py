"""Write real, human-labelled pairs (Cornell NLVR) in the released formats: the input of scripts/real_pairs.sh.

    python tests/helpers/nlvr.py --input $UNIFIEDREWARD_TEST_DATA/nlvr --output outputs/nlvr/data

People wrote each statement, and labelled of which picture it is true: the caption and the preferred image. The traces'
counts come from the exact list of objects in each picture. Splits keep all pairs of a statement together.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from unifiedreward_think.records import digest
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.verdict import answer_text, render

COLOURS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}


def instruction(caption: str) -> str:
    return f"Caption: {caption}\nThink, then answer."


def observe(boxes: list) -> str:
    counts = Counter(COLOURS[item["color"].lower()] for box in boxes for item in box)
    return ", ".join(f"{counts[colour]} {colour}" for colour in COLOURS.values())


def trace(first: list, second: list, winner: int) -> str:
    semantic = (9, 3) if winner == 1 else (3, 9)
    says = ("as asked", "mostly wrong") if winner == 1 else ("mostly wrong", "as asked")
    return render(
        winner,
        [("Semantic consistency", *semantic), ("Aesthetics", 8, 8), ("Authenticity", 7, 7)],
        noun="Image",
        notes=[says, ("clean", "clean"), ("whole", "whole")],
        preamble=f"Image 1 shows {observe(first)}. Image 2 shows {observe(second)}.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write NLVR pairs in the released formats.")
    parser.add_argument("--input", type=Path, required=True, help="the nlvr folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the three splits")
    args = parser.parse_args()
    boxes = {row["image"]: row["structured_rep"] for _, row in read_json_lines(args.input / "statements.jsonl")}
    splits = defaultdict(list)
    for _, row in read_json_lines(args.input / "pairs.jsonl"):
        winner = 1 + digest("nlvr", row["id"]) % 2
        images = [row["chosen"], row["rejected"]][:: 1 if winner == 1 else -1]
        bucket = digest("nlvr split", row["prompt"]) % 10
        split = "cold_start" if bucket < 3 else "train" if bucket < 7 else "heldout"
        common = {"id": row["id"], "images": [str((args.input / image).resolve()) for image in images]}
        text = "<image><image>" + instruction(row["prompt"])
        if split == "cold_start":
            turns = [{"from": "human", "value": text}]
            turns.append({"from": "gpt", "value": trace(*(boxes[image] for image in images), winner)})
            splits[split].append({**common, "conversations": turns})
        else:
            splits[split].append({**common, "problem": text, "solution": answer_text(winner, "Image")})
    args.output.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (args.output / f"{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        print(f"{split}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
