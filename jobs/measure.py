"""`mstar measure` for `ray job submit -- python jobs/measure.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["measure", *sys.argv[1:]]))
