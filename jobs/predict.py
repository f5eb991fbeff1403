"""`mstar predict` for `ray job submit -- python jobs/predict.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
