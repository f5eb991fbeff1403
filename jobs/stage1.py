"""`mstar stage1` for `ray job submit -- python jobs/stage1.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["stage1", *sys.argv[1:]]))
