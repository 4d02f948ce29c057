r"""How sure one verdict makes: 1,735 published judgments of GPT-4o on GenAI-Bench (images), against people's votes.

    python scripts/bench/genai_calibration.py --input image_generation_gpt4o.jsonl.gz \
        --output results/genai_calibration.json

The file is results/ of TIGER-AI-Lab/GenAI-Bench at f0b0334d4140: one free-text judgment a pair, shown in one order, so
there are no samples, orders or scores. What is measured is what one verdict can say: the shares of the labels given the
verdict, and how near probabilities come that are fitted on other prompts.
"""

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path

from unifiedreward_think.davidson import cross_fit
from unifiedreward_think.evaluation.parity import genai_vote
from unifiedreward_think.evaluation.sureness import forecasts, vote_shares
from unifiedreward_think.evidence import Evidence
from unifiedreward_think.folds import FOLDS, split
from unifiedreward_think.probability_metrics import OUTCOMES, Probabilities, summarize_forecasts
from unifiedreward_think.writing import write_whole

LABELS = {"leftvote": 1, "rightvote": 2, "tievote": "tie", "bothbad_vote": "tie"}
VOTES = {"[[A>B]]": (1, 0, 0), "[[B>A]]": (0, 0, 1), "[[A=B=Good]]": (0, 1, 0), "[[A=B=Bad]]": (0, 1, 0)}
KEPT = ("brier", "calibration_error")


def read(path):
    """Return the pairs, each with its verdict as it was written."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = []
    for row in rows:
        said = genai_vote(row["response"])
        votes = VOTES.get(said, (0, 0, 0))
        name, place = str(row["idx"]), 1.0 if sum(votes) else 0.0
        pair = Evidence(
            record_id=name,
            cluster=row["prompt"],
            votes=votes,
            unreadable=1 - sum(votes),
            position=place,
            label=LABELS[row["human_vote"]],
        )
        pairs.append((said or "none", pair))
    return pairs


def frequencies(pairs):
    """Return the shares of the labels, half a pair of each added."""
    counted = Counter(pair.label for _, pair in pairs)
    total = sum(counted.values()) + 0.5 * len(OUTCOMES)
    return Probabilities(*((counted[outcome] + 0.5) / total for outcome in OUTCOMES))


def given_the_verdict(pairs, *, blind=False):
    """Return record id -> the shares of labels among the other folds' pairs of the same verdict, or of any (blind)."""
    found = {}
    for part, others in split(pairs, lambda row: row[1].cluster):
        for said, pair in part:
            found[pair.record_id] = frequencies([row for row in others if blind or row[0] == said])
    return found


def measure(pairs):
    """Return what is reported."""
    evidence = [pair for _, pair in pairs]
    ways = {
        "the verdict, taken as certain": {pair.record_id: vote_shares(pair) for pair in evidence},
        "shares of the labels, without a look": given_the_verdict(pairs, blind=True),
        "shares of the labels given the verdict": given_the_verdict(pairs),
        "the calibration": cross_fit(evidence),
    }
    summaries = {way: summarize_forecasts(forecasts(evidence, found)) for way, found in ways.items()}
    by_verdict = {}
    for said in sorted({said for said, _ in pairs}):
        part = [row for row in pairs if row[0] == said]
        by_verdict[said] = {"pairs": len(part), **frequencies(part)._asdict()}
    return {
        "pairs": len(pairs),
        "prompts": len({pair.cluster for pair in evidence}),
        "folds": FOLDS,
        "labels": {str(label): count for label, count in Counter(pair.label for pair in evidence).items()},
        "given_the_verdict": by_verdict,
        "ways": {way: {key: summary[key] for key in KEPT} for way, summary in summaries.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="image_generation_gpt4o.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    found = measure(read(args.input))
    write_whole(args.output, json.dumps(found, indent=1) + "\n")
    for way, block in found["ways"].items():
        print(f"{way}: Brier {block['brier']['value']:.3f}, calibration error {block['calibration_error']:.3f}")


if __name__ == "__main__":
    main()
