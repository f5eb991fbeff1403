"""`mstar labels build` for `ray job submit -- python jobs/labels_build.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["labels", "build", *sys.argv[1:]]))
