"""RNA counts, genes × cases, written one gene at a time: any number of cases in constant memory.

The count of gene g in case c is negative binomial with dispersion `DISPERSION · noise` and mean

    library[c] · abundance[g] · batch[site of c, g] · (1 + direction[g] · tanh(EFFECT · s · z[c]))

z is the standardised factor that the gene follows (-1 or 1 for mutation and cancer type), s the
strength. A pair of genes, one up and one
down, adds up to the same whatever z is. Library sizes are log-normal with a part of the site's; the
random numbers of a gene are its own.
"""

import math
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, Purpose, rng_of
from mstar.cohorts.generated.gene_table import Gene, genes_of
from mstar.data.tables import write_table
from mstar.storage import objects

EFFECT = 0.2
DISPERSION = 0.2
LIBRARY_SPREAD = 0.3  # standard deviation of the log, within a site
SITE_LIBRARY_SPREAD = 0.15
BATCH_SPREAD = 0.2
MEAN_COUNT = 300.0  # typical gene; abundances spread over e^(± 1.2)
ABUNDANCE_SPREAD = 1.2

_MAX_SITES = 99
_TRUTH = pa.schema({"gene": pa.string(), "factor": pa.string(), "direction": pa.int64()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CohortArrays:
    """What the counts of a gene need to know of the cases.

    library: factor of each case's library size, 1 being typical.
    site: index of each case's site.
    factors: name → standardised factor; a cancer type's is high in its own cases.
    """

    library: Float64[np.ndarray, " case"]
    site: Int64[np.ndarray, " case"]
    factors: dict[str, Float64[np.ndarray, " case"]]


def write_expression(folder: str, config: GenerateConfig, cases: Sequence[CaseFactors]) -> int:
    """Write rna.tsv, and truth/genes.csv that says which gene follows what; returns the cases."""
    measured = [case for case in cases if case.has_rna]
    genes = genes_of(config)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "rna.tsv")
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("\t".join(["Hugo_Symbol", *(case.case_id for case in measured)]) + "\n")
            cohort = cohort_arrays(config, measured)
            for gene in genes:
                counts = gene_counts(config, gene, cohort)
                file.write(f"{gene.symbol}\t" + "\t".join(map(str, counts.tolist())) + "\n")
        objects.put_file(path, objects.join(folder, "rna.tsv"))
    _write_truth(objects.join(folder, "truth", "genes.csv"), genes)
    return len(measured)


def cohort_arrays(config: GenerateConfig, cases: Sequence[CaseFactors]) -> CohortArrays:
    """The cases as arrays."""
    site = np.array([int(case.site[1:]) - 1 for case in cases], np.int64)
    own = [rng_of(config, Purpose.RNA, case.index).normal() for case in cases]
    spread = SITE_LIBRARY_SPREAD * config.site_effect
    of_site = rng_of(config, Purpose.SITES).normal(0, spread, _MAX_SITES)
    return CohortArrays(
        library=np.exp(LIBRARY_SPREAD * np.array(own, np.float64) + of_site[site]),
        site=site,
        factors=_standardised(config, cases),
    )


def gene_counts(
    config: GenerateConfig, gene: Gene, cohort: CohortArrays
) -> Int64[np.ndarray, " case"]:
    """The counts of one gene in every case."""
    shared = rng_of(config, Purpose.GENES, *_numbers(f"{gene.factor}/{gene.pair}"))
    abundance = MEAN_COUNT * math.exp(shared.normal(0, ABUNDANCE_SPREAD))
    own = rng_of(config, Purpose.GENES, *_numbers(gene.symbol), 1)
    batch = np.exp(own.normal(0, BATCH_SPREAD * config.site_effect, _MAX_SITES))
    means = cohort.library * abundance * batch[cohort.site]
    if gene.factor:
        slope = EFFECT * config.strength_in_rna
        means = means * (1 + gene.direction * np.tanh(slope * cohort.factors[gene.factor]))
    dispersion = DISPERSION * config.noise
    if dispersion > 0:
        # draws before the counts: a Poisson draw takes as many random numbers as it likes
        means = means * own.gamma(1 / dispersion, dispersion, len(means))
    counts: Int64[np.ndarray, " case"] = own.poisson(means).astype(np.int64)
    return counts


def _standardised(
    config: GenerateConfig, cases: Sequence[CaseFactors]
) -> dict[str, Float64[np.ndarray, " case"]]:
    """Factors at mean 0 and about unit spread, from their known distributions, not the sample."""
    factors = {
        "mutation": [2.0 * case.mutation - 1 for case in cases],
        "grade": [(case.grade - 2) / math.sqrt(2 / 3) for case in cases],
        "pathway": [(case.pathway - 0.5) * math.sqrt(12) for case in cases],
        "hazard": [case.hazard for case in cases],
    }
    for code in config.cancer_types:
        factors[code] = [2.0 * (case.cancer_type == code) - 1 for case in cases]
    return {name: np.array(values, np.float64) for name, values in factors.items()}


def _numbers(text: str) -> tuple[int, int]:
    """A seed from a name, the same in every process."""
    data = text.encode()
    return zlib.crc32(data), zlib.adler32(data)


def _write_truth(uri: str, genes: Sequence[Gene]) -> None:
    columns = {
        "gene": [gene.symbol for gene in genes],
        "factor": [gene.factor or None for gene in genes],
        "direction": [gene.direction for gene in genes],
    }
    write_table(uri, pa.table(columns, schema=_TRUTH))
