"""signatures.csv of a generated cohort: its genes in the six groups that fusion heads read apart.

The names of the groups are the published ones, and real symbols keep their names; which gene is in
which group is planted, not biology. The genes of one factor share a group; of those that follow no
factor three in four are spread over the six, and the fourth is in none.
"""

from itertools import zip_longest

import pyarrow as pa

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.gene_table import genes_of
from mstar.data.tables import write_table
from mstar.storage import objects

GROUP_OF = {
    "mutation": "Tumor Suppressor Genes",
    "grade": "Oncogenes",
    "pathway": "Protein Kinases",
    "type": "Cell Differentiation Markers",
    "": "Transcription Factors",
    "hazard": "Cytokines and Growth Factors",
}
"""Factor → the group that its genes are in."""
SIGNATURES = "signatures.csv"
_PLACES = 8  # of eight genes without a factor, six go to a group each


def groups_of(config: GenerateConfig) -> dict[str, list[str]]:
    """Group → its genes, in alphabetical order."""
    groups: dict[str, list[str]] = {name: [] for name in GROUP_OF.values()}
    names, free = list(groups), 0
    for gene in genes_of(config):
        if gene.factor:
            groups[GROUP_OF.get(gene.factor, GROUP_OF["type"])].append(gene.symbol)
            continue
        place, free = free % _PLACES, free + 1
        if place < len(names):
            groups[names[place]].append(gene.symbol)
    return groups


def write_signatures(folder: str, config: GenerateConfig) -> None:
    """Write the signature table."""
    groups = groups_of(config)
    rows = list(zip_longest(*groups.values()))
    columns = {
        name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(groups)
    }
    write_table(objects.join(folder, SIGNATURES), pa.table(columns))
