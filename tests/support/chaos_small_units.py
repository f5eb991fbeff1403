"""The command line with the shards' work cut small: so little data would be one unit, one bucket.

Run as `python -m support.chaos_small_units targets …`; units are cut by the driver alone.
"""

import sys

from mstar.cli.main import main
from mstar.pretrain import shards_plan

if __name__ == "__main__":
    shards_plan._LEAST_UNIT_ROWS, shards_plan._SLACK = 25, 8
    sys.exit(main(sys.argv[1:]))
