"""``python -m earlytom.cli``: the ``earlytom`` command."""

from earlytom.cli import main

if __name__ == "__main__":
    main()
