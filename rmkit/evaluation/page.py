"""HTML pages from the templates beside this file. Every value is text: what it holds of HTML is escaped."""

from typing import Any

from rmkit.pages.frame import environment

_ENVIRONMENT = environment("rmkit.evaluation")


def render(template: str, **values: Any) -> str:
    """The whole page that `template` (a file in templates/) makes of the values."""
    return _ENVIRONMENT.get_template(template).render(values)
