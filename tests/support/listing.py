"""What stands below a folder."""

import hashlib
from pathlib import Path


def listing(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Checksum of every file below a folder, "" for a folder; entries whose first part is in `without` are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] not in without:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found
