"""`mstar train-head` for `ray job submit -- python jobs/train_head.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train-head", *sys.argv[1:]]))
