"""`mstar embed` for `ray job submit -- python jobs/embed.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
