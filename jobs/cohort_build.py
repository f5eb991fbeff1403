"""`mstar cohort build` for `ray job submit -- python jobs/cohort_build.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["cohort", "build", *sys.argv[1:]]))
