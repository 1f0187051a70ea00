"""The frame that pages share: whatever a value holds is text, in a cell and in an attribute."""

import pytest
from jinja2 import UndefinedError

from rmkit.evaluation import page
from support.page_reader import EVIL, read

SECOND = """{% extends "base.html.jinja" %}{% from "parts.html.jinja" import plots, table %}
{% block title %}{{ name }}{% endblock %}
{% block style %}.own { color: red; }{% endblock %}
{% block body %}
<h1>{{ name }}</h1>
{{ table([[name, name]], [name, name]) }}
{{ table([[name, name]], numbers=false) }}
{{ plots({name: "PHN2Zy8+"}) }}
{% endblock %}
"""
"""A page besides the report, as a later one would be."""


def second(**values) -> str:
    return page._ENVIRONMENT.from_string(SECOND).render(values)


def test_another_page_shares_the_frame_and_its_look():
    text = second(name="curves")
    reader = read(text)
    assert text.startswith("<!DOCTYPE html>")
    assert text.index("th, td {") < text.index(".own {") < text.index("@media print")
    assert [word for word in reader.words if "curves" in word] == ["curves"] * 9
    assert reader.tags.count("table") == 2
    assert reader.tags.count("thead") == 1
    assert reader.addresses == ["data:image/svg+xml;base64,PHN2Zy8+"]


@pytest.mark.parametrize("hostile", [EVIL, '" onload="x', "{{ 7 * 7 }}", "</style></title>", "<!--", "&lt;b&gt;"])
def test_values_are_text_in_every_place(hostile):
    plain, spoiled = read(second(name="curves")), read(second(name=hostile))
    assert spoiled.tags == plain.tags
    assert [word.replace(hostile, "curves") for word in spoiled.words] == plain.words
    assert [name for name, _ in spoiled.attributes] == [name for name, _ in plain.attributes]
    assert ("alt", hostile) in spoiled.attributes


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="name"):
        second()
    with pytest.raises(UndefinedError):
        page.render("report.html.jinja", model="m")
