"""Pages that open offline: one head, one stylesheet, one way to fill a template.

    write_page(Path("report.html"), HERE / "report.html", title="Judgments", ...)

A template extends `base.html` of this folder and fills its blocks: `style`, `main` and, where it needs one, `script`.
What is filled in is escaped, and a name that is not given is an error. A page may load nothing: its policy says so.
Where it says CONTENTS, its headings with an id are listed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unifiedreward_think.writing import write_whole

if TYPE_CHECKING:
    from jinja2 import Template

T = TypeVar("T")
HERE = Path(__file__).parent
CONTENTS = '<nav aria-label="Contents"></nav>'


def load_template(template: Path) -> Template:
    """Return a template; what it extends or includes lies beside it, or here."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name)


def in_turn(items: Iterable[T], kind: Callable[[T], Hashable]) -> list[T]:
    """Return items, the first of every kind, then the second of each and so on, else in the order given.

    >>> in_turn(["ant", "ape", "bee", "asp", "bat"], kind=lambda name: name[0])
    ['ant', 'bee', 'ape', 'bat', 'asp']
    """
    seen: Counter[Hashable] = Counter()
    turns = []
    for item in items:
        turns.append((seen[kind(item)], item))
        seen[kind(item)] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill a template into an HTML file; its folder is made if needed."""
    write_whole(path, with_contents(load_template(template).render(**values)))


def with_contents(page: str) -> str:
    """Return a page with links to its headings in its contents: no template lists them a second time.

    >>> with_contents(CONTENTS + '<h2 id="plots">Plots</h2>')
    '<nav aria-label="Contents"><a href="#plots">Plots</a></nav><h2 id="plots">Plots</h2>'
    """
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', page))
    return page.replace(CONTENTS, CONTENTS.replace("><", f">{links}<"), 1)
