"""Judgments and pages to look into."""

from html.parser import HTMLParser

import pytest

from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.toy.world import Scene, write_scene
from unifiedreward_think.verdict import parse, render

EVIL = "<script>alert('x')</script> & {{ 7 * 7 }} http://example.org/pixel.png"


def judged(record, order="ab", *, right=True, text=None, **more):
    noun = TASKS[record.task].noun
    winner = record.shown(order).winner if right else 3 - record.shown(order).winner
    scores = [("Aesthetics", 9, 4) if winner == 1 else ("Aesthetics", 4, 9)]
    text = render(winner, scores, noun=noun, preamble=EVIL) if text is None else text
    return Judgment(
        record_id=record.id,
        order=order,
        completion=text,
        verdict=parse(text, noun),
        preferred=record.preferred,
        task=record.task,
        **more,
    )


def draw(folder, name, *, moving=False):
    return str(write_scene(Scene("red", "circle", motion="left" if moving else ""), seed=len(name), stem=folder / name))


@pytest.fixture
def records(tmp_path):
    """One labelled pair of each task, with drawn pictures and clips."""
    return drawn_records(tmp_path)


def drawn_records(folder):
    rows = []
    for task, kind in TASKS.items():
        moving, two = kind.media_kind == "video", TASKS[task].compares_media
        names = [f"{task}-{k}" for k in range(1 + two)]
        rows.append(
            PreferenceRecord(
                id=f"id-{task}",
                task=task,
                prompt=f"{task}: {EVIL}",
                media=tuple((draw(folder, name, moving=moving),) for name in names),
                answers=() if two else ("It is red.", EVIL),
                preferred=1,
            )
        )
    return {row.id: row for row in rows}


def run_of(records, **more):
    return [judged(record, order, **more) for record in records.values() for order in ("ab", "ba")]


class Balance(HTMLParser):
    """Collect start tags, and complain about an end tag that closes another element than the open one."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"


def elements(page):
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.seen
