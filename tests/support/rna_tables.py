"""Small expression tables as the field's sites deliver them, and the store that comes of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd

from mstar.data.rna.expression import ExpressionConfig, ExpressionSummary, preprocess_expression
from mstar.data.rna.store import ExpressionStore

GENES = ("TP53", "EGFR", "MYC", "A1BG", "SLC35E2", "KRAS", "PTEN")
RSEM = ExpressionConfig(unit="rsem")


def barcodes(count: int) -> list[str]:
    """Sample barcodes that are not in alphabetical order."""
    return [f"TCGA-{'BA'[i % 2]}{i % 7}-{i:04d}-01" for i in range(count)]


def linear_frame(
    num_cases: int = 6, genes: tuple[str, ...] = GENES, seed: int = 0, high: float = 20_000.0
) -> pd.DataFrame:
    """Genes × cases, RSEM-like, some zeros, four digits."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.uniform(0, high, (len(genes), num_cases)), 4)
    values[rng.uniform(size=values.shape) < 0.2] = 0.0
    values[0] = np.round(rng.uniform(100, high, num_cases), 4)  # never a case without expression
    return pd.DataFrame(values, index=list(genes), columns=barcodes(num_cases))


def cbioportal(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with cBioPortal's two id columns."""
    table = frame.reset_index(names="Hugo_Symbol")
    table.insert(1, "Entrez_Gene_Id", range(1, len(table) + 1))
    return table


def write_tsv(path: Path, table: pd.DataFrame, *, index: bool = False) -> str:
    """A TSV (gzipped by its name) of the table."""
    text = table.to_csv(sep="\t", index=index).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def build(
    source: str | list[str], out: Path, config: ExpressionConfig = RSEM, **more: object
) -> tuple[ExpressionStore, ExpressionSummary]:
    """The store of a table, and what is said of it."""
    summary = preprocess_expression(source, str(out), config, **more)  # type: ignore[arg-type]
    return ExpressionStore.open(str(out)), summary


def as_frame(store: ExpressionStore) -> pd.DataFrame:
    """Cases × genes."""
    return pd.DataFrame(store.rows(store.case_ids), index=store.case_ids, columns=store.genes)


def reference(frame: pd.DataFrame, rule: str = "sum") -> pd.DataFrame:
    """What the store must hold of a linear genes × cases frame: the independent ten lines."""
    merged = frame.groupby(level=0, sort=True).agg(rule)
    return np.log1p(merged.T.sort_index()).astype(np.float32)
