"""HTML from templates: the frame that every page shares. Every value is text: what it holds of HTML is escaped."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

COMPARISON = '<meta name="generator" content="rmkit runs">'
"""Stands in the head of every comparison of runs: a file that has it may be written anew"""


def environment(package: str) -> Environment:
    """The templates of a package, which extend and import those beside this file."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("rmkit.pages", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,  # a value that is not given is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
