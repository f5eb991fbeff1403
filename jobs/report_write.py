"""`mstar report write` for `ray job submit -- python jobs/report_write.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["report", "write", *sys.argv[1:]]))
