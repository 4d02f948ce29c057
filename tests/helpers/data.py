"""Sources to import, and what the data commands write of them."""

import json
import re

from helpers import data_sources
from helpers.servers import caption, reply
from unifiedreward_think.data.importing import Input, Settings, expand, import_source
from unifiedreward_think.data.shards import Part, ShardFolder, read_stored
from unifiedreward_think.data.sources.declaration import load_source, read_source
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import render


def stored(i, prompt="", pictures=None, source="hpd", task="image_generation", group=""):
    understanding = not TASKS[task].compares_media
    pictures = pictures or [f"/{source}/{i}-a.png", f"/{source}/{i}-b.png"][: 1 if understanding else 2]
    record = PreferenceRecord(
        id=f"{source}-{i}",
        task=task,
        prompt=prompt or f"kite {source} {i}",
        media=tuple((path,) for path in pictures),
        answers=("A cat.", "A dog.") if understanding else (),
        preferred=1 + i % 2,
        source=source,
        group=group,
    )
    return Trace(record=record)


def save(folder, rows):
    shards = ShardFolder(folder, {"test": len(rows)})
    shards.write(Part(rows=list(rows)), len(rows))
    shards.finish({})
    return folder


def number_of(body):
    return int(re.search(r"picture (\d+)", caption(body)).group(1))


def usage(body, prompt=1000, completion=200):
    return json.dumps(
        {**json.loads(body), "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    ).encode()


def scripted(body, nth):
    """Right in the place that is shown for most pairs; wrong, loose, false sums, no answer, or cut for some."""
    number = number_of(body)
    shown = order_of(number)
    right = 1 if shown == "ab" else 2
    winner = 3 - right if number == 1 else right
    text = render(winner, [("Aesthetics", 9 if winner == 1 else 4, 4 if winner == 1 else 9)], noun="Image")
    text = {2: "Sure! " + text, 3: re.sub(r"=\d", "=7", text), 4: "I cannot say."}.get(number, text)
    return 200, {}, usage(reply(text, finish="length" if number == 4 else "stop"))


def order_of(number):
    from unifiedreward_think.data.rows import shown_orders

    record = PreferenceRecord(id=f"r{number:02d}", task="image_generation", prompt="", media=(("a",), ("b",)))
    return shown_orders(record, "one", 0)[0]


NO_MAP = Settings(renamed={})


def imported(name, root, settings=NO_MAP, inputs=None):
    """Import a source's synthetic files; return the manifest and the rows."""
    (root / "in").mkdir(parents=True, exist_ok=True)
    file, media_root = data_sources.SOURCES[name][0](root / "in")
    entry = Input(str(file), media_root or file.parent)
    manifest = import_source(load_source(name), inputs or [entry], root / "out", settings)
    return manifest, [row for _, _, row in read_stored([root / "out"])]


PLAIN = {
    "name": "plain",
    "judged_by": "people",
    "facts": ["made up"],
    "unverified": [],
    "task": "image_generation",
    "fields": {"prompt": "prompt", "media": ["a", "b"]},
    "label": {"rule": "larger", "first": "votes_a", "second": "votes_b", "votes": True},
}


def source(declared=PLAIN, **changes):
    return read_source(json.dumps({**declared, **changes}), "plain.yaml")


def row(i=0, **changes):
    return {"prompt": f"kite {i}", "a": "a.png", "b": "b.png", "votes_a": 5, "votes_b": 2, **changes}


def run_import(file, output, declared=None, **changes):
    options = {"renamed": {}, **changes}
    return import_source(declared or source(), expand([str(file)], None), output, Settings(**options))


def removed(output):
    lines = [line for file in sorted((output / "left_out").glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
