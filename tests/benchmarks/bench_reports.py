"""How fast reports are cleaned, tokenised and cut into windows, on one core and on all.

    PYTHONPATH=tests python tests/benchmarks/bench_reports.py [--reports 2000] [--words 640]

Reports of made-up words (4,000 characters each, as in TCGA-Reports), a vocabulary as large as
BioBERT's; every tenth word is not in it. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

VOCABULARY = 28_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=2000)
    parser.add_argument("--words", type=int, default=640)
    arguments = parser.parse_args()
    from mstar.data.report_cleaning import clean_report
    from mstar.data.report_tokens import ReportTokenizer, case_seed
    from support.tiny_bert import write_tokenizer

    known, texts = make_reports(arguments.reports, arguments.words)
    num_characters = sum(map(len, texts))
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), known)
        tokenizer = ReportTokenizer(folder)
    ids = tokenizer.token_ids(texts)
    seeds = [case_seed(0, 0, str(i)) for i in range(len(ids))]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    all_cores = seconds(lambda: tokenizer.token_ids(texts))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    one_core = seconds(lambda: tokenizer.token_ids(texts))
    windows = seconds(lambda: tokenizer.collate(ids, window="random", seeds=seeds))
    cleaning = seconds(lambda: [clean_report(text) for text in texts])
    num_tokens = sum(map(len, ids))
    print(
        json.dumps(
            {
                "reports": len(texts),
                "characters_per_report": num_characters // len(texts),
                "tokens_per_report": num_tokens // len(texts),
                "cores": os.cpu_count(),
                "cleaned_reports_per_s": round(len(texts) / cleaning),
                "tokenised_reports_per_s_one_core": round(len(texts) / one_core),
                "tokenised_reports_per_s_all_cores": round(len(texts) / all_cores),
                "tokens_per_s_one_core": round(num_tokens / one_core),
                "windows_per_s": round(len(texts) / windows),
            }
        )
    )


def make_reports(count: int, words: int) -> tuple[list[str], list[str]]:
    """Known words, and reports whose words follow Zipf's law, ten words a sentence."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    lexicon = ["".join(generator.choice(letters, n)) for n in generator.integers(2, 10, VOCABULARY)]
    known = [word for i, word in enumerate(lexicon) if i % 10]
    texts = []
    for _ in range(count):
        drawn = [lexicon[i % VOCABULARY] for i in generator.zipf(1.2, words) - 1]
        lines = [" ".join(drawn[i : i + 10]) for i in range(0, words, 10)]
        texts.append(". ".join(line.capitalize() for line in lines))
    return known, texts


def seconds(call: Callable[[], object]) -> float:
    """The fastest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
