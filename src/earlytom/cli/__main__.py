"""``python -m earlytom.cli``."""

from earlytom.cli import main

main()
