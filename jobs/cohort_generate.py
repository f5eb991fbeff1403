"""`mstar cohort generate` for `ray job submit -- python jobs/cohort_generate.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["cohort", "generate", *sys.argv[1:]]))
