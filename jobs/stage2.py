"""`mstar stage2` for `ray job submit -- python jobs/stage2.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["stage2", *sys.argv[1:]]))
