"""`mstar heatmap` for `ray job submit -- python jobs/heatmap.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["heatmap", *sys.argv[1:]]))
