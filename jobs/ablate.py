"""`mstar ablate` for `ray job submit -- python jobs/ablate.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
