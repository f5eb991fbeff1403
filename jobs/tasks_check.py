"""`mstar tasks check` for `ray job submit -- python jobs/tasks_check.py …`."""

import sys

from mstar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["tasks", "check", *sys.argv[1:]]))
