"""Mutated or not, by case: samples of the mutation tables put together.

Of a case with several samples those of the type that counts first decide (primary tumours before
metastases, recurrences last); aliquots of one sample are one, so that no mutation counts twice. The
burden is that of the first aliquot in the order of names.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from mstar.data.label_build.mutations import (
    NOT_PROFILED,
    WILD,
    Mutations,
    read_case_list,
    read_mafs,
)
from mstar.data.label_build.settings import LabelSettings
from mstar.data.label_build.sources import Sources
from mstar.data.tables import Column, read_table
from mstar.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class Alterations:
    """What is known of each case's genes.

    samples: case → its samples that count, by name.
    unprofiled: gene → samples in which it was not looked at.
    """

    mutations: Mutations
    samples: dict[str, list[str]]
    unprofiled: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def status(self, case: str, genes: Sequence[str]) -> bool | None:
        """Whether any of the genes is mutated; None when that is not known."""
        samples = set(self.samples.get(case, ()))
        if any(samples & self.mutations.mutated[gene] for gene in genes):
            return True
        known = [samples - self.unprofiled.get(gene, set()) for gene in genes]
        return False if samples and all(known) else None

    def has_silent_only(self, case: str, genes: Sequence[str]) -> bool:
        """Whether there are mutations, none of which counts."""
        samples = set(self.samples.get(case, ()))
        silent = any(samples & self.mutations.silent_only(gene) for gene in genes)
        return silent and not any(samples & self.mutations.mutated[gene] for gene in genes)

    def burdens(self) -> dict[str, int]:
        """Case → non-silent mutations of its first aliquot."""
        return {c: self.mutations.burden[min(names)] for c, names in self.samples.items() if names}


def read_alterations(
    sources: Sources, settings: LabelSettings, genes: Collection[str]
) -> Alterations:
    """The mutations of a data set, read once for all tasks of one run.

    Raises:
        ConfigError: there is no table of mutations.
    """
    if sources.alterations is None or not set(genes) <= sources.alterations[0]:
        sources.alterations = (frozenset(genes), _read(sources, settings, genes))
    found = sources.alterations[1]
    assert isinstance(found, Alterations)
    return found


def _read(sources: Sources, settings: LabelSettings, genes: Collection[str]) -> Alterations:
    drivers = _drivers(settings)
    mutations = read_mafs(
        sources.maf_uris, genes, drivers=drivers, also_non_silent=settings.non_silent
    )
    notes, unprofiled = [], {}
    listed: set[str] = set()
    for uri in sources.case_list_uris:
        listed |= read_case_list(uri)
    if sources.maf_uris:
        sources.used |= dict.fromkeys((*sources.maf_uris, *sources.case_list_uris))
        known = "case lists and " if listed else ""
        notes.append(f"sequenced: by {known}the samples of {len(sources.maf_uris)} MAF(s)")
        mutations.sequenced |= listed
    else:
        unprofiled = _add_matrices(sources, genes, mutations)
        if not mutations.sequenced:
            raise ConfigError(
                f"{sources.folder}: expected a MAF (Hugo_Symbol, Variant_Classification, "
                f"Tumor_Sample_Barcode) or a table with columns like {sorted(genes)[0]}, got "
                "neither. platform/docs/labels.md says where it comes from."
            )
        notes.append("mutated: by columns of genes")
    notes.append("any non-silent mutation" if drivers is None else "driver mutations alone")
    samples = _samples_of(sources, mutations.sequenced)
    return Alterations(mutations=mutations, samples=samples, unprofiled=unprofiled, notes=notes)


def _samples_of(sources: Sources, names: Collection[str]) -> dict[str, list[str]]:
    """Case → its samples of the best rank."""
    ranked: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        key = sources.key(name)
        if key is not None:
            ranked.setdefault(key.name, []).append((key.rank, name))
    return {
        case: sorted(name for rank, name in several if rank == min(several)[0])
        for case, several in ranked.items()
    }


def _drivers(settings: LabelSettings) -> frozenset[tuple[str, str]] | None:
    if settings.drivers is None:
        return None
    columns = (
        Column(name="gene", aliases=("Hugo_Symbol",)),
        Column(name="protein_change", aliases=("HGVSp_Short",)),
    )
    rows = read_table(settings.drivers, columns).to_pylist()
    return frozenset((row["gene"], row["protein_change"].removeprefix("p.")) for row in rows)


def _add_matrices(
    sources: Sources, genes: Collection[str], mutations: Mutations
) -> dict[str, set[str]]:
    """Adds tables with a column a gene; returns the samples in which a gene was not looked at."""
    unprofiled: dict[str, set[str]] = {gene: set() for gene in genes}
    seen: dict[str, set[str]] = {gene: set() for gene in genes}
    for gene in genes:
        for sheet in sources.with_columns((gene,)):
            own = sheet.find(gene) or gene
            cells = zip(sheet.columns[sheet.id_column], sheet.columns[own], strict=True)
            for name, cell in cells:
                value = (cell or "").strip().lower()
                if name is None:
                    continue
                mutations.sequenced.add(name)
                if value in NOT_PROFILED:
                    continue
                seen[gene].add(name)
                if value not in WILD:
                    mutations.mutated[gene].add(name)
    for gene in genes:
        unprofiled[gene] = mutations.sequenced - seen[gene]
    return unprofiled
