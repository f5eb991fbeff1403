"""A sweep in a process of its own, to be killed: python sweep_driver.py SETTINGS.json."""

import json
import sys

from mstar.downstream.sweep import run
from mstar.downstream.sweep_config import SweepConfig

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    lists = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    sys.exit(run(SweepConfig(**(settings | lists))))
