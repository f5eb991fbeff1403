"""Which samples were sequenced, and in which of them a gene is mutated.

    MAF            Hugo_Symbol, Variant_Classification, Tumor_Sample_Barcode [, HGVSp_Short], one
                   row a mutation; of the GDC, of MC3, of cBioPortal (data_mutations.txt); streamed
    per gene       STUDY_ID, SAMPLE_ID, TP53 …: a column a gene, as cBioPortal's downloads have it
    case list      cases_sequenced.txt of cBioPortal: `case_list_ids:` and the samples

A sample without a mutation in a MAF is of the wild type only if it was sequenced: if a case list
or the MAF's own `#sequenced_samples:` names it, or if the MAF has any mutation of it, silent ones
too. Of everything else nothing is known.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mstar.data.table_files import open_text
from mstar.errors import TableError

NON_SILENT: Final = frozenset(
    {
        "Missense_Mutation",
        "Nonsense_Mutation",
        "Nonstop_Mutation",
        "Frame_Shift_Del",
        "Frame_Shift_Ins",
        "In_Frame_Del",
        "In_Frame_Ins",
        "Splice_Site",
        "Translation_Start_Site",
        "De_novo_Start_InFrame",
        "De_novo_Start_OutOfFrame",
        "Start_Codon_SNP",
        "Start_Codon_Del",
        "Start_Codon_Ins",
        "Stop_Codon_Del",
        "Stop_Codon_Ins",
    }
)
SILENT: Final = frozenset(
    {
        "Silent",
        "Intron",
        "3'UTR",
        "5'UTR",
        "3'Flank",
        "5'Flank",
        "IGR",
        "RNA",
        "lincRNA",
        "Splice_Region",
        "Targeted_Region",
    }
)
_GENE, _CLASS, _SAMPLE = "Hugo_Symbol", "Variant_Classification", "Tumor_Sample_Barcode"
_CHANGE = "HGVSp_Short"
_SEQUENCED = "#sequenced_samples:"
_CASE_LIST = "case_list_ids:"
_BLOCK_BYTES = 1 << 24
WILD = frozenset({"wt", "0", "no alteration", "no mutation", "wildtype", "wild type"})
NOT_PROFILED = frozenset({"ns", "not profiled", "not sequenced", ""})


@dataclass(slots=True, kw_only=True)
class Mutations:
    """What the mutation tables of a data set say, by sample as they name it.

    sequenced: every sample of which something is known.
    mutated: gene → samples with a mutation that counts.
    silent_only: gene → samples whose only mutations in it are silent.
    burden: sample → its non-silent mutations, of MAFs alone.
    """

    sequenced: set[str] = field(default_factory=set)
    mutated: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    touched: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    burden: Counter[str] = field(default_factory=Counter)

    def silent_only(self, gene: str) -> set[str]:
        """Samples whose mutations of a gene do not count."""
        return self.touched[gene] - self.mutated[gene]


def is_maf(uri: str) -> bool:
    """Whether a file is a table of mutations: by its name, else by its header."""
    plain = uri.removesuffix(".gz").removesuffix(".zip").lower()
    if plain.endswith(".maf"):
        return True
    if not plain.endswith((".txt", ".tsv")):
        return False
    return {_GENE, _CLASS, _SAMPLE} <= set(_header(uri)[0])


def is_case_list(uri: str) -> bool:
    """Whether a file is one of cBioPortal's lists of samples."""
    name = uri.rpartition("/")[2]
    return name.startswith("cases_") and name.endswith(".txt")


def read_case_list(uri: str) -> set[str]:
    """The samples that a list of cBioPortal names; empty for lists of other data."""
    if "sequenced" not in uri.rpartition("/")[2]:
        return set()
    with open_text(uri) as file:
        lines = file.read().decode().splitlines()
    named = (line[len(_CASE_LIST) :] for line in lines if line.startswith(_CASE_LIST))
    return {sample for line in named for sample in line.split()}


def read_mafs(
    uris: Sequence[str],
    genes: Collection[str],
    *,
    drivers: Collection[tuple[str, str]] | None = None,
    also_non_silent: Collection[str] = (),
) -> Mutations:
    """Stream MAFs; memory is bounded by the samples and not by the mutations.

    Args:
        uris: the tables.
        genes: those to look at; the burden counts all.
        drivers: (gene, protein change) that count alone; None: every non-silent mutation counts.
        also_non_silent: further values of Variant_Classification that change the protein.

    Raises:
        TableError: a column is missing, a row is cut, or a class is not known.
    """
    found = Mutations()
    counted = NON_SILENT | set(also_non_silent)
    for uri in uris:
        names, comments = _header(uri)
        missing = [name for name in (_GENE, _CLASS, _SAMPLE) if name not in names]
        if drivers is not None and _CHANGE not in names:
            missing.append(_CHANGE)
        if missing:
            raise TableError(
                f"{uri}: expected the columns {', '.join(missing)}, got {', '.join(names[:8])} …. "
                "Give a MAF as the GDC or cBioPortal has it."
            )
        for line in comments:
            if line.startswith(_SEQUENCED):
                found.sequenced |= set(line[len(_SEQUENCED) :].split())
        wanted = [_GENE, _CLASS, _SAMPLE] + ([_CHANGE] if drivers is not None else [])
        try:
            with open_text(uri) as file:
                for batch in _batches(file, len(comments) + 1, names, wanted):
                    _count(uri, batch, set(genes), drivers, counted, found)
        except pa.ArrowInvalid as error:
            said = " ".join(str(error).split())[:160]
            raise TableError(f"{uri}: {said}. Fetch the table again: it is cut.") from error
    return found


def _header(uri: str) -> tuple[list[str], list[str]]:
    """The columns, and the comments before them."""
    comments: list[str] = []
    with open_text(uri) as file:
        for raw in iter(file.readline, b""):
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if not line.startswith("#"):
                return line.split("\t"), comments
            comments.append(line)
    return [], comments


def _batches(
    file: io.BufferedIOBase, skipped: int, names: list[str], wanted: list[str]
) -> Iterator[pa.RecordBatch]:
    for _ in range(skipped):
        file.readline()
    assert isinstance(file, io.BufferedReader)
    if not file.peek(1):
        return
    yield from pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(
            use_threads=False, block_size=_BLOCK_BYTES, column_names=names
        ),
        parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=False,
        ),
    )


def _count(
    uri: str,
    batch: pa.RecordBatch,
    genes: set[str],
    drivers: Collection[tuple[str, str]] | None,
    counted: Collection[str],
    found: Mutations,
) -> None:
    """Adds one block of rows."""
    table = pa.Table.from_batches([batch])
    groups = table.group_by([_SAMPLE, _CLASS]).aggregate([([], "count_all")]).to_pylist()
    for group in groups:
        kind, sample = group[_CLASS], group[_SAMPLE]
        if kind not in counted and kind not in SILENT:
            raise TableError(
                f"{uri}: column {_CLASS}: expected a class of the MAF format, got {kind!r}. If it "
                f"changes the protein, add it with --non-silent {kind}."
            )
        found.sequenced.add(sample)
        if kind in counted:
            found.burden[sample] += group["count_all"]
    of_genes = table.filter(pc.is_in(table[_GENE], pa.array(sorted(genes), pa.string())))
    for row in of_genes.to_pylist():
        gene, sample = row[_GENE], row[_SAMPLE]
        found.touched[gene].add(sample)
        driver = drivers is None or (gene, (row[_CHANGE] or "").removeprefix("p.")) in drivers
        if row[_CLASS] in counted and driver:
            found.mutated[gene].add(sample)
