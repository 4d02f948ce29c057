"""The pages: what is filled in is text, nothing is loaded from elsewhere, and a name that is missing is an error."""

import pytest
from jinja2 import UndefinedError

from unifiedreward_think.pages import write_page

EVIL = "<script>alert(1)</script>"


def page(tmp_path, body, **values):
    template = tmp_path / "template.html"
    template.write_text('{% extends "base.html" %}\n' + body)
    write_page(tmp_path / "new" / "page.html", template, **values)
    return (tmp_path / "new" / "page.html").read_text()


def test_what_is_filled_in_is_never_markup(tmp_path):
    text = page(tmp_path, "{% block main %}<h1>{{ title }}</h1>{% endblock %}", title=EVIL)
    assert text.startswith("<!doctype html>") and EVIL not in text and text.count("&lt;script&gt;") == 2


def test_only_a_page_with_a_script_of_its_own_may_run_one(tmp_path):
    main = "{% block main %}{{ title }}{% endblock %}"
    plain = page(tmp_path, main, title="a")
    scripted = page(tmp_path, main + '{% block script %}{% include "filter.html" %}{% endblock %}', title="a")
    assert "default-src 'none'" in plain and "default-src 'none'" in scripted
    assert "script-src" not in plain and "<script" not in plain
    assert "script-src 'unsafe-inline'" in scripted and scripted.count("<script") == 1


def test_a_name_that_is_not_given_is_an_error(tmp_path):
    with pytest.raises(UndefinedError, match="title"):
        page(tmp_path, "{% block main %}{% endblock %}")
