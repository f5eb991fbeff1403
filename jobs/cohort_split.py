"""`mstar cohort split` for `ray job submit -- python jobs/cohort_split.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["cohort", "split", *sys.argv[1:]]))
