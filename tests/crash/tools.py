"""Programs of Debian that some of these tests need.

With ``SEKALI_TEST_TOOLS=required`` or ``CI=true`` in the environment a test whose program is missing fails; otherwise
it is skipped. (``.ci/run`` does not set ``CI``, with which Hypothesis would try the same examples in each run.)
"""

import os
import shutil

import pytest


def require(program: str, package: str) -> str:
    """Return the path of a program."""
    path = shutil.which(program)
    if path is None:
        reason = f"NO {program}: what this test shows was NOT TESTED; apt-get install {package}"
        if os.environ.get("SEKALI_TEST_TOOLS") == "required" or os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
