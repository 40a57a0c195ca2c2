"""``python -m runtime.durable FOLDER [--drop]``: check a worker's store; forget what in it is damaged."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from planc.errors import PlancError
from planc.limits import Limits
from runtime.durable.store import DurableStore
from runtime.shelf import Shelf


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where nothing is damaged any more, 1 where something is, 2 where the store cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m runtime.durable", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="as given to planc worker --store, which must not be running"
    )
    parser.add_argument("--drop", action="store_true", help="forget what is damaged, for good")
    options = parser.parse_args(arguments)
    try:
        return _check(options.folder, drop=options.drop)
    except PlancError as error:
        print(error, file=sys.stderr)
        return 2


def _check(folder: Path, *, drop: bool) -> int:
    if not (folder / "index.sqlite").is_file():
        print(f"{folder} is not a store: there is no index.sqlite", file=sys.stderr)
        return 2
    with closing(DurableStore(folder)) as store:
        damages = store.damages(_owner(folder), Shelf(Limits(), 2**62, 2**62))
        for damage in damages:
            print(f"{damage.what}: {damage.why}")
        if not damages:
            print("nothing is damaged")
        elif drop:
            store.drop(damages)
            print(f"{len(damages)} dropped")
        return 1 if damages and not drop else 0


def _owner(folder: Path) -> str:
    """The worker whose store it is; "" where the index does not say, which opening it then will."""
    try:
        with closing(sqlite3.connect(folder / "index.sqlite")) as connection:
            row = connection.execute("SELECT value FROM facts WHERE name='worker'").fetchone()
    except sqlite3.Error:
        return ""
    return "" if row is None else str(row[0])


if __name__ == "__main__":
    sys.exit(main())
