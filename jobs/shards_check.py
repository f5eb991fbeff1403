"""`mstar shards check` for `ray job submit -- python jobs/shards_check.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["shards", "check", *sys.argv[1:]]))
