"""`mstar sweep` for `ray job submit -- python jobs/sweep.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
