"""`mstar targets` for `ray job submit -- python jobs/targets.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["targets", *sys.argv[1:]]))
