"""`make bench`: every benchmark in turn; JSON lines, then the rows as a table.

Ratios are made within one run of one program, so a slow or busy machine moves both sides.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = (
    *("bench_reading.py", "bench_embed.py", "bench_bags.py", "bench_shards.py", "bench_stage2.py"),
    *("bench_heads.py", "bench_downstream.py", "bench_sweep.py"),
)


def main() -> None:
    """Run the programs and print what they measured."""
    rows = [row for program in PROGRAMS for row in run(program)]
    print("\n| what | ratio | target |\n|---|---|---|")
    for row in rows:
        if "ratio" in row:
            target = row.get("target")
            name = f"{row.get('bench', '')}: {row.get('row', row.get('name', ''))}"
            print(f"| {name} | {row['ratio']} | {'–' if target is None else f'≥ {target}'} |")


def run(program: str) -> list[dict[str, object]]:
    """The JSON lines of one program, shown as they come."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    print(f"# {program}", flush=True)
    process = subprocess.Popen(
        [sys.executable, str(HERE / program)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    rows = []
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith("{"):
            rows.append(json.loads(line))
    if process.wait() != 0:
        sys.exit(f"{program} failed")
    return rows


if __name__ == "__main__":
    main()
