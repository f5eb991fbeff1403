"""`mstar grid` for `ray job submit -- python jobs/grid.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["grid", *sys.argv[1:]]))
