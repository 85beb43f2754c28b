#!/usr/bin/env python
"""Make the fixture of the schema that this program writes: a small store, and what it holds. Once for each release.

It goes to ``tests/fixtures/stores/schema-<version>.db`` and ``.json``; later programs have to open it.
"""

import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sekali.stores.sqlite import SqliteStore  # noqa: E402
from sekali.stores.sqlite_schema import SCHEMA_VERSION  # noqa: E402
from sekali.testing import FakeClock  # noqa: E402
from stored import contents, fill  # noqa: E402


def main() -> None:
    """Make it."""
    target = ROOT / "tests" / "fixtures" / "stores" / f"schema-{SCHEMA_VERSION}.db"
    if target.exists():
        sys.exit(f"{target} exists: a released schema does not change")
    store = SqliteStore(target, FakeClock(), topics_max=100)
    store.recover()
    fill(store)
    target.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(contents(store)), indent=1))
    store.close()
    for left in target.parent.glob(f"{target.name}.*"):
        if left.is_dir():
            for file in left.iterdir():
                file.unlink()
            left.rmdir()
        else:
            left.unlink()
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
