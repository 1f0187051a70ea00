"""What a name on the command line can stand for, data or a model, told before any library is loaded."""

import difflib
import re
from pathlib import Path
from typing import Literal

from rmkit.config import DEMO, DEMO_MODEL
from rmkit.data import hub
from rmkit.data.benchmarks import BENCHMARKS
from rmkit.data.files import SUFFIXES
from rmkit.data.named import NAMED
from rmkit.errors import UserError

Kind = Literal["path", "benchmark", "named", "hub"]

_OWNED = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB_ID = re.compile(r"(\w[\w.-]*/)?[\w.-]+")


def kind_of(given: str, field: str) -> Kind:
    """Whether a name of data is an existing file or folder, a benchmark (NAME or NAME=PATH), a named set or a hub id
    (OWNER/NAME), in that order; UserError about `field` where it can be none of them."""
    if given and Path(given).exists():
        return "path"
    benchmark, _, clone = given.partition("=")
    if benchmark in BENCHMARKS:
        if clone and not Path(clone).exists():
            raise UserError(field, given, "there is no such path")
        if not (clone or BENCHMARKS[benchmark].hub):
            hint = f"it is no set on the hub; clone its repository and give {benchmark}=PATH"
            raise UserError(field, given, hint)
        return "benchmark"
    base, _, asked = given.partition(":")
    if base in NAMED or (base == DEMO and asked in ("", "train", "test")):
        return "named"
    if _OWNED.fullmatch(base) and not base.endswith(SUFFIXES):
        return "hub"
    raise UserError(field, given or repr(given), _unknown(given))


def check_data(given: str, field: str) -> None:
    """UserError about `field` where a name of data can be nothing, or is on a hub that cannot be reached."""
    kind, base, sets = kind_of(given, field), given.partition(":")[0], []
    if kind == "benchmark" and "=" not in given:
        sets = [name for name, _ in BENCHMARKS[given].hub]
    elif kind == "named" and base != DEMO:
        sets = [NAMED[base].hub]
    elif kind == "hub":
        sets = [base]
    if lost := [name for name in sets if hub.absent("datasets", name)]:
        hint = f"no such path here, and the hub's set {lost[0]} cannot be reached and is in no cache"
        raise UserError(field, given, f"{hint}; without a network, give the path of a local file")


def _unknown(given: str) -> str:
    """What is wrong with a name of data that is nothing."""
    base = Path(given.partition(":")[0])
    if ":" in given and base.exists():
        return "a path takes no :SPLIT; give the rows a field 'split', and the path alone"
    known = [DEMO, *NAMED, *BENCHMARKS]
    close = _nearest(base, known)
    return (
        f"no such file or folder, named set or hub id{close} (named sets: {', '.join(known)}; a hub id is OWNER/NAME)"
    )


def check_model(given: str, field: str) -> None:
    """UserError about `field` where a name can be neither a model's folder nor a hub id, or is on a hub that cannot be
    reached; "demo" and the place of its model are made where they are needed."""
    path = Path(given)
    if given in (DEMO, str(DEMO_MODEL)) or (given and path.exists()):
        return
    if _HUB_ID.fullmatch(given):
        if hub.absent("models", given):
            hint = f"no model configuration was found on this disk{elsewhere(path) or _nearest(path)}"
            raise UserError(field, given, f"{hint}; the hub cannot be reached")
        return
    hint = f"there is no such folder{elsewhere(path) or _nearest(path)}"
    raise UserError(field, given or repr(given), f"{hint}; a hub id is NAME or OWNER/NAME")


def elsewhere(path: Path) -> str:
    """Where a model is that a run folder holds, in words; "" where there is none."""
    places = [path / "FINAL", path.parent / "old-run" / path.name]
    return "".join(f"; there is one in {place}" for place in places if (place / "config.json").is_file())


def _nearest(path: Path, known: list[str] | None = None) -> str:
    """Which of `known` or of the files beside `path` is called nearly so, in words; "" where none is."""
    # Without suffixes: every .jsonl would be like any other.
    beside = {entry.stem: str(entry) for entry in path.parent.iterdir()} if path.parent.is_dir() else {}
    called = {name: name for name in known or ()} | beside
    close = difflib.get_close_matches(path.stem, called, n=1)
    return f", did you mean {called[close[0]]}?" if close else ""
