"""SHA256SUMS: a checksum of every file of a folder, as `sha256sum -c` reads it, made and checked by all ranks."""

import hashlib
from pathlib import Path

from rmkit.distributed.collectives import on_every_rank, on_first_rank, rank, ranks
from rmkit.storage.atomic import flush

NAME = "SHA256SUMS"


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def checksums(folder: Path, files: list[Path]) -> dict[str, str]:
    """Flush the files that this rank wrote to the disk; their checksums by name in `folder`."""
    flush(files)
    return {str(file.relative_to(folder)): sha256(file) for file in files}


def write_checksums(folder: Path, by_rank: list[dict[str, str]]) -> None:
    """Write SHA256SUMS from what `checksums` returned on each rank. OSError where rank 0 does not see a rank's file."""
    for writer, digests in enumerate(by_rank):
        for name in digests:
            if not (folder / name).is_file():
                raise OSError(f"{name} of rank {writer} is not on the disk of rank 0: all ranks must share one disk")
    lines = [f"{digest}  {name}\n" for digests in by_rank for name, digest in digests.items()]
    text = "".join(lines)
    # The last line is the list's own checksum: a list that is cut off or changed shows.
    (folder / NAME).write_text(text + _own(text), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Which file does not have its checksum; None where all have. Every rank takes part and reads its share."""
    listed = on_first_rank(lambda: _listed(folder))
    if isinstance(listed, str):
        return listed

    def compare() -> list[str]:
        return [why for name, digest in listed[rank() :: ranks()] if (why := _differs(folder / name, digest))]

    return next((why for of_rank in on_every_rank(compare) for why in of_rank), None)


def _listed(folder: Path) -> list[tuple[str, str]] | str:
    """Names and digests of the files, the largest first, so that all ranks read about as much; or what is wrong with
    the list."""
    try:
        for path in folder.rglob("*"):
            if path.exists() and not (path.is_file() or path.is_dir()):  # to read it is to wait for ever
                return f"{path.name} is no ordinary file"
        text = (folder / NAME).read_bytes().decode("utf-8", "backslashreplace")
        lines = text.splitlines(keepends=True)
        if not lines or lines[-1] != _own("".join(lines[:-1])):
            return f"{NAME} does not have its own checksum"
        listed = [(line[66:].rstrip("\n"), line[:64]) for line in lines[:-1]]
        return sorted(listed, key=lambda item: (folder / item[0]).stat().st_size, reverse=True)
    except OSError as error:
        return str(error)


def _own(text: str) -> str:
    return f"# {hashlib.sha256(text.encode()).hexdigest()}  of the lines above\n"


def _differs(file: Path, digest: str) -> str | None:
    try:
        return None if sha256(file) == digest else f"{file.name} does not have its checksum"
    except OSError as error:
        return str(error)
