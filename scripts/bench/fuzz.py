"""Feed broken input to everything that reads what others wrote: nothing but the documented errors may come out.

    nice python scripts/bench/fuzz.py --output results/fuzz.json             # 1 030 000 inputs
    nice python scripts/bench/fuzz.py --share 0.001 --output /tmp/fuzz.json  # a thousandth of them

verdict   `verdict.parse` on completions: never raises; a strict verdict has a winner; reading again says the same
records   JSON lines through `data.loading`: a row is used or refused by a RecordError, and a used row survives writing
          and reading; the same bytes through `strict_json.read_json_lines` and as judgments
config    YAML through `training.parsing.parse` and `data.sources.read_source`: arguments, or an InputError,
          or SystemExit
pictures, clips    (fuzz_media.py) through `media.open_image` and `decoders.decode`: as ImageMagick and the ffmpeg
          command line show them, or refused by a MediaError
checkpoints    (fuzz_checkpoints.py) through `models.loading`: the model of a sound folder, or an InputError

Inputs are valid ones that were cut, repeated, spliced and sprinkled with what has broken parsers before, rows with
values of another kind, and random bytes. The same seed makes the same inputs; a crash is stored with its input in the
output file, and the status is 1.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from itertools import islice
from pathlib import Path

import fuzz_checkpoints
import fuzz_media

from unifiedreward_think.data.formats.files import read_values
from unifiedreward_think.data.formats.shapes import Origin, read_record, read_trace
from unifiedreward_think.data.sources.declaration import read_source
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.verdict import NOUNS, parse, render
from unifiedreward_think.writing import write_whole

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).parents[2]
INPUTS = {
    "verdict": 600_000,
    "records": 400_000,
    "config": 10_000,
    "pictures": 19_000,
    "clips": 1_000,
    "checkpoints": 500,
}
BATCH = 50  # lines of a file of records
KEPT = 20  # crashes stored with their input
ODD = [
    *("", "\0", "\x1a", "\ufeff", "\u2028", "\u200b", "\ud800", "\U0001f600", "e\u0301", "\r", "\r\n", "\t", "\x85"),
    *("<think>", "</think>", "<answer>", "</answer>", "Image 1", "Video 2", "Answer 2 is better", "(10/10)"),
    *("Total score:", "<image>", "/dev/zero", "..", "*" * 200, "()", "%", "0", "-1", "1e999", "NaN", "Infinity"),
    *(
        "9" * 5000,
        "0x1F",
        "1_000",
        "\u0661",
        "1.",
        ".5",
        "+1=",
        "\u00b2",
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        "\\u",
        ",",
        ":",
    ),
    *("null", "true", "{}", "[" * 3000, '{"a":' * 3000, "id", "media", "preferred", "record", "problem", "images"),
    *("&a *a", "!!python/object:os.system", "!!int x", "!!bool x", "2001-99-99", "? ", "- ", "---\n", "...\n", "<<: "),
    *("env: 1\n", "frames: []\n", "limit: {}\n", "orders: no\n", "1: 2\n", "~: ~\n", "output_dir: ", "seed: 1e3\n"),
]
VALUES = [
    None,
    True,
    0,
    1,
    2,
    -1.5,
    1.0,
    float("nan"),
    10**40,
    "",
    "tie",
    "ab",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    [1],
    {},
]
VALUES += [[1], ["a.png"], ["a.png", None], [["a.png"], []], {"a": 1}, {"id": "b"}, [{"from": 1}], "video_generation"]


def mangled(line, chance):
    """Return a JSON row in which one to three values are of another kind, gone, or under another name."""
    row = json.loads(line)
    for _ in range(chance.randint(1, 3)):
        part = row
        while isinstance(part, dict | list) and part:
            key = chance.choice(list(part) if isinstance(part, dict) else range(len(part)))
            if not isinstance(part[key], dict | list) or not part[key] or chance.random() < 0.4:
                break
            part = part[key]
        if not part:
            break
        if (fault := chance.randrange(6)) == 0:
            del part[key]
        elif fault == 1 and isinstance(part, dict):
            part[chance.choice(list(row) or ["id"]) + chance.choice(("", "s"))] = part.pop(key)
        else:
            part[key] = copy.deepcopy(chance.choice(VALUES)) if fault < 5 else chance.choice(ODD)
    return json.dumps(row)


def mutated(text, chance, corpus):
    """Return a text with one to five faults."""
    for _ in range(chance.randint(1, 5)):
        i, j = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        fault = chance.randrange(6)
        if fault == 0:
            text = text[:i] + text[min(j, i + 40) :]
        elif fault == 1:
            text = text[:i] + chance.choice(ODD) + text[i:]
        elif fault == 2:
            text = text[:i] + chance.choice(ODD) + text[min(j, i + 20) :]
        elif fault == 3:
            text = text[:j] + text[i:j][:200] * chance.randint(1, 4) + text[j:]
        elif fault == 4:
            other = chance.choice(corpus)
            text = text[:i] + other[chance.randrange(len(other) + 1) :]
        else:
            text = text[:i] + "".join(chr(chance.randrange(0x250)) for _ in range(chance.randint(1, 8))) + text[i:]
    return text[:20_000]


def completions():
    """Return well-formed completions, short and long."""
    scores = [("Alignment", 7, 5), ("Quality", 3.5, 6), ("**Detail**", 10, 0)]
    found = [
        render(1 + n % 2, scores[: n % 4], noun=noun, layout=layout)
        for n, noun in enumerate(NOUNS * 3)
        for layout in ("one_line", "three_line")
    ]
    return [*found, "<answer>Image 1 is better</answer>", "<think>\n</think>", ""]


def read_verdict(text, chance):
    """Check what holds of every verdict."""
    noun, style = chance.choice(NOUNS), chance.choice(("cot", "direct"))
    found = parse(text, noun, style=style)
    assert found.winner in (1, 2, None), found
    assert not found.strict or found.winner is not None, found
    assert found.strict or found.problems or style == "direct" or found.winner is None, found
    json.dumps([found.winner, found.totals, found.problems])
    return "winner" if found.winner else "no winner"


def rows():
    """Return one row of every shape as JSON."""
    record = {"id": "a", "task": "image_generation", "prompt": "a kite", "media": ["a.png", ["b.png"]], "preferred": 1}
    film = {"id": "v", "task": "video_understanding", "prompt": "what?", "media": [["1.png", "2.png"]]}
    film |= {"answers": ["yes", "no"], "preferred": "tie", "source": "s", "group": "g"}
    said = "<think>\nx\n</think>\n<answer>Image 1 is better</answer>"
    problem = {"problem": "<image><image>\nwhich of Image 1 and Image 2?", "images": ["a.png", "b.png"]}
    problem |= {"solution": "<answer>Image 1 is better</answer>"}
    turns = [{"from": "human", "value": "<image><image> Image 1 or Image 2?"}, {"from": "gpt", "value": said}]
    verdict = {"winner": 1, "strict": True, "scores": [["A", 1, 2]], "totals": [1, 2], "problems": []}
    judgment = {"record_id": "a", "order": "ab", "completion": said, "verdict": verdict, "task": "image_generation"}
    return [
        json.dumps(row, ensure_ascii=False)
        for row in (
            *(record, film, {"record": record, "order": "ba", "completion": said}),
            *({"conversations": turns, "images": ["a.png", "b.png"]}, problem, judgment),
        )
    ]


def read_rows(lines, file):
    """Read a file of lines in every way, and return what came of each line."""
    # A line break inside a line would make two of it; a surrogate has no bytes but those that json makes of it.
    data = [line.replace("\n", " ").replace("\r", " ").encode(errors="surrogatepass") for line in lines]
    file.write_bytes(b"\n".join([b"{}", *data]))  # never without a row
    for number, value in islice(read_values(file), 1, None):
        if isinstance(value, RecordError):
            yield "refused: no JSON"
            continue
        yield read_row(value, Origin(f"row-{number}", "fuzz", file.parent))
    yield from ["blank" for line in data if not line.strip()]
    with contextlib.suppress(RecordError):
        for _ in read_json_lines(file):
            pass


def read_row(value, origin):
    """Read a value as a record, a trace and a judgment."""
    if not isinstance(value, dict):
        return "refused: no object"
    outcome = "refused"
    for read, again in ((read_record, PreferenceRecord), (read_trace, Trace)):
        with contextlib.suppress(RecordError):
            found = read(value, origin)
            assert again.from_json(json.loads(json.dumps(found.to_json()))) == found, found
            outcome = "used"
    with contextlib.suppress(RecordError):
        Judgment.from_json(value)
        outcome = "used"
    return outcome


def configs():
    """Return every declaration and the stage configs as text, without comments."""
    files = [*sorted((REPO / "configs/data").glob("*.yaml")), *sorted((REPO / "configs/toy").glob("*.yaml"))]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return ["\n".join(line.partition("  #")[0] for line in text.splitlines() if line[:1] != "#") for text in texts]


def read_config(text, file):
    """Read a text as the config of a stage and as the declaration of a source, and return what came of it."""
    from unifiedreward_think.training import grpo, parsing, rejection_sampling
    from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, TrainingExtras

    outcomes = []
    try:
        read_source(text, "fuzz.yaml")
        outcomes.append("used")
    except InputError:
        outcomes.append("refused")
    file.write_bytes(text.encode(errors="surrogatepass"))
    own = (DataArguments, TrainingExtras, grpo.RewardArguments, SharedPrefixArguments)
    names = {f"{name}:" for cls in (*own, *rejection_sampling.ARGUMENTS) for name in cls.__dataclass_fields__}
    # Without the arguments of TRL, whose meaning is TRL's.
    kept = [line for line in text.split("\n") if line.split(" ")[0] in names or ":" not in line[:30]]
    for content, types in ((text, rejection_sampling.ARGUMENTS), ("\n".join(kept), own)):
        file.write_bytes(content.encode(errors="surrogatepass"))
        sys.argv = ["fuzz", "--config", str(file)]
        before = dict(os.environ)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                parsing.parse(*types)
            outcomes.append("used")
        except (InputError, SystemExit):
            outcomes.append("refused")
        finally:
            os.environ.clear()
            os.environ.update(before)
    return "used" if "used" in outcomes else "refused"


def fuzz(name, count, seed, folder):
    """Read `count` inputs and return the outcomes and the crashes; what is read wrongly counts as one."""
    for part in (fuzz_media, fuzz_checkpoints):
        if name in part.TARGETS:
            return part.fuzz(name, count, seed, folder, KEPT)
    chance, outcomes, crashes = random.Random(f"{seed} {name}"), Counter(), []
    corpus = {"verdict": completions, "records": rows, "config": configs}[name]()
    file = folder / ("rows.jsonl" if name == "records" else "config.yaml")

    def inputs():
        kind = chance.random()
        if kind > 0.97:
            return noise(chance)
        if name == "records" and kind < 0.6:
            return mangled(chance.choice(corpus), chance)
        return mutated(chance.choice(corpus), chance, corpus)

    done = 0
    while done < count:
        batch = [inputs() for _ in range(min(BATCH if name == "records" else 1, count - done))]
        done += len(batch)
        try:
            if name == "records":
                outcomes.update(read_rows(batch, file))
            else:
                outcomes[read_verdict(batch[0], chance) if name == "verdict" else read_config(batch[0], file)] += 1
        except Exception as error:
            outcomes["crash"] += 1
            if len(crashes) < KEPT:
                crashes.append({"error": repr(error)[:500], "trace": traceback.format_exc()[-1500:], "input": batch})
    return dict(sorted(outcomes.items())), crashes


def noise(chance):
    """Return characters of any kind."""
    return chance.randbytes(chance.randint(0, 200)).decode(chance.choice(("latin-1", "utf-8")), errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of inputs")
    parser.add_argument("--targets", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the counts")
    args = parser.parse_args()
    command = " ".join(["python", *sys.argv])
    found = {}
    # In memory, where there is such a folder: a million small files would wear out a disk.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for name in args.targets:
            count, began = max(1, int(INPUTS[name] * args.share)), time.process_time()
            outcomes, crashes = fuzz(name, count, args.seed, Path(folder))
            seconds = round(time.process_time() - began, 1)
            found[name] = {"inputs": count, "outcomes": outcomes, "processor seconds": seconds, "crashes": crashes}
            crashed = sum(row["outcomes"].get("crash", 0) for row in found.values())
            total = {"inputs": sum(row["inputs"] for row in found.values()), "crashes": crashed}
            report = {"command": command, "seed": args.seed, "total": total, "targets": found, **provenance()}
            write_whole(args.output, json.dumps(report, indent=1) + "\n")
            print(name, outcomes, f"{seconds} s", flush=True)
    raise SystemExit(int(total["crashes"] > 0))


if __name__ == "__main__":
    main()
