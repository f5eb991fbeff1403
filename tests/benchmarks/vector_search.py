"""How long a question to an index takes, exactly and approximately, and what the latter misses.

    python tests/benchmarks/vector_search.py [--entries 1000000] [--dim 512] [--questions 50]

Vectors are 2,000 groups with spread, as slides of alike cases are; questions are other members of
the groups. One JSON line; build times, milliseconds a question (one at a time), recall at 10.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from mstar.downstream.language.search_index import (
    VectorIndex,
    exact_search,
    has_faiss,
    recall_of,
    train_cells,
)

GROUPS, SPREAD = 2000, 0.6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--questions", type=int, default=50)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((GROUPS, given.dim), dtype=np.float32)
    vectors = members(rng, centres, given.entries)
    questions = members(rng, centres, given.questions)
    exact_search(vectors, questions[:1], 10)
    began_s = time.perf_counter()
    exact = [exact_search(vectors, one[None], 10) for one in questions]
    exact_ms = 1e3 * (time.perf_counter() - began_s) / len(questions)
    whole = exact_search(vectors, questions, 10)
    assert all((one.places[0] == row).all() for one, row in zip(exact, whole.places, strict=True))
    said = {"bench": "vector search", "entries": given.entries, "dim": given.dim,
            "exact_ms_a_question": round(exact_ms, 1), "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1)}  # fmt: skip
    if has_faiss():
        began_s = time.perf_counter()
        cells = train_cells(vectors)
        said["cells_build_s"] = round(time.perf_counter() - began_s, 1)
        for probed in (8, 32, 128):
            index = VectorIndex(vectors, cells, probed)
            began_s = time.perf_counter()
            for one in questions:
                index.search(one[None], 10)
            ms = 1e3 * (time.perf_counter() - began_s) / len(questions)
            recall = recall_of(index.search(questions, 10), whole)
            said[f"cells_{probed}"] = {
                "ms_a_question": round(ms, 2),
                "recall_at_10": round(recall, 3),
            }
    print(json.dumps(said))


def members(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors around the centres, made in parts so that memory holds them once."""
    made = np.empty((count, centres.shape[1]), np.float32)
    for start in range(0, count, 100_000):
        own = centres[rng.integers(0, len(centres), min(100_000, count - start))]
        own = own + SPREAD * rng.standard_normal(own.shape, dtype=np.float32)
        made[start : start + len(own)] = own / np.linalg.norm(own, axis=1, keepdims=True)
    return made


if __name__ == "__main__":
    main()
