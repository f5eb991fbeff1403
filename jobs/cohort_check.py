"""`mstar cohort check` for `ray job submit -- python jobs/cohort_check.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["cohort", "check", *sys.argv[1:]]))
