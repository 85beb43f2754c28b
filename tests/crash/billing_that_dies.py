"""The billing service of the examples. If that is armed it dies by SIGKILL between a bill and its acknowledgement."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "orders"))
import billing

from e2e.points import die_at
from sekali.client import Subscriber

POINT = "between the bill and its acknowledgement"


class _Dying(Subscriber):
    def _call(self, *arguments: Any) -> None:
        super()._call(*arguments)
        die_at(POINT)


if __name__ == "__main__":
    billing.Subscriber = _Dying  # type: ignore[attr-defined]
    billing.main()
