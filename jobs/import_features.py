"""`mstar import` for `ray job submit -- python jobs/import_features.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["import", *sys.argv[1:]]))
