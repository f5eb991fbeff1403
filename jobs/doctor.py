"""`mstar doctor` for `ray job submit -- python jobs/doctor.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
