"""`mstar results` for `ray job submit -- python jobs/results.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["results", *sys.argv[1:]]))
