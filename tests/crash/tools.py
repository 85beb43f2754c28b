"""Programs of Debian that some of these tests need."""

import os
import shutil

import pytest


def require(program: str, package: str) -> str:
    """Return the path of a program. Where it is missing the test fails in CI, and is skipped elsewhere."""
    path = shutil.which(program)
    if path is None:
        reason = f"NO {program}: what this test shows was NOT TESTED; apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
