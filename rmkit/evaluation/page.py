"""HTML pages from the templates beside this file. Every value is text: what it holds of HTML is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("rmkit.evaluation", "templates"),
    autoescape=True,
    undefined=StrictUndefined,  # a value that is not given is an error, not an empty place
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """The whole page that `template` (a file in templates/) makes of the values."""
    return _ENVIRONMENT.get_template(template).render(values)
