"""Pages that open offline: one head, one stylesheet, one way to fill a template.

    write_page(Path("report.html"), HERE / "report.html", title="Judgments", ...)

A template extends `base.html` of this folder and fills its blocks: `style`, `main` and, where it needs one, `script`.
What is filled in is escaped, and a name that is not given is an error. A page may load nothing: its policy says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.writing import write_whole

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).parent


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


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill a template into an HTML file; its folder is made if needed."""
    write_whole(path, load_template(template).render(**values))
