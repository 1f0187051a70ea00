"""The rooms of the house: an import points down only, and never in a circle."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"errors", "config", "config_json", "terminal", "runtime", "rmkit_kernels"},
    {"data"},
    {"batch"},
    {"model"},
    {"distributed"},
    {"storage"},
    {"pages"},
    {"scorer"},
    {"training", "labelling", "evaluation", "checking"},
    {"inspection"},
    {"cli"},
    {"train"},
    {"api", "demo_model"},
    {"label", "evaluate", "inspect", "check", "convert", "runs"},
)
"""From the ground up: what a room may import stands below it, or within it (the ground is one room)."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def files() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for root in (ROOT / "rmkit", ROOT / "kernels" / "rmkit_kernels"):
        for file in root.rglob("*.py"):
            found[".".join(file.relative_to(root.parent).with_suffix("").parts)] = file
    return found


def imports(file: Path) -> set[str]:
    """The modules of ours that a file names, at its top or inside its functions."""
    found, known = set(), files()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[0] if parts[0] == "rmkit_kernels" else parts[1] if len(parts) > 1 else None


def test_every_room_has_its_floor():
    assert {room(name) for name in files()} - {None, "__init__", "__main__"} == set(FLOOR_OF)


def test_no_import_points_up():
    up = []
    for name, file in files().items():
        here = room(name)
        for other in imports(file):
            there = room(other)
            if here not in FLOOR_OF or there not in FLOOR_OF or here == there or FLOOR_OF[here] == 0:
                continue
            if FLOOR_OF[there] >= FLOOR_OF[here]:
                up.append(f"{name} -> {other}")
    assert up == []


def test_no_import_goes_in_a_circle():
    edges = {name: imports(file) - {name} for name, file in files().items()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in edges[name]:
                walk(other, (*path, name))
            done.add(name)

    for name in edges:
        walk(name, ())


def test_a_room_re_exports_nothing():
    for file in (ROOT / "rmkit").rglob("*/__init__.py"):
        assert len(ast.parse(file.read_text()).body) == 1, f"{file}: more than a docstring"
