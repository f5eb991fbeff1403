"""`make bench`: every benchmark in turn; JSON lines, then the rows as a table.

    make bench                              all of them
    make bench ONLY="bench_shards.py …"     some

Ratios are made within one run of one program, so a slow or busy machine moves both sides. A program
that fails does not stop the others; the exit code tells. A ratio below its target is marked and is
no failure: on a busy machine it may be chance.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAMS = (
    *("bench_reading.py", "bench_embed.py", "bench_bags.py", "bench_shards.py", "bench_stage2.py"),
    *("bench_heads.py", "bench_downstream.py", "bench_sweep.py", "bench_first_token.py"),
    "bench_gpu.py",
)

Row = dict[str, Any]


def main() -> None:
    """Run the programs and print what they measured."""
    chosen = sys.argv[1:] or PROGRAMS
    if unknown := [name for name in chosen if name not in PROGRAMS]:
        sys.exit(f"{unknown[0]}: expected some of {', '.join(PROGRAMS)}")
    rows: list[Row] = []
    failed = []
    for program in chosen:
        found, code = run(program)
        rows += found
        failed += [program] if code else []
    print("\n| what | ratio | target | |\n|---|---|---|---|")
    print("\n".join(table_line(row) for row in rows if "ratio" in row))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def table_line(row: Row) -> str:
    """A measured ratio beside its target."""
    target = row.get("target")
    name = f"{row.get('bench', '')}: {row.get('row', row.get('name', ''))}"
    below = target is not None and row["ratio"] < target
    aim = "–" if target is None else f"≥ {target}"
    return f"| {name} | {row['ratio']} | {aim} | {'below' if below else ''} |"


def run(program: str) -> tuple[list[Row], int]:
    """The JSON lines of one program, shown as they come, and its exit code."""
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
    return rows, process.wait()


if __name__ == "__main__":
    main()
