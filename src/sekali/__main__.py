"""``python -m sekali``."""

from sekali.cli import main

main()
