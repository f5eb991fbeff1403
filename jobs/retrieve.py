"""`mstar retrieve` for `ray job submit -- python jobs/retrieve.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["retrieve", *sys.argv[1:]]))
