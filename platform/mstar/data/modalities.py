"""Counts which cases have which modalities: the pairs that contrastive pretraining lives from."""

from collections.abc import Iterable
from dataclasses import dataclass

from mstar.data.cases import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """How many cases have each modality, each pair of them and all three.

    A case counts once, however many slides it has.
    cases: all of them, those with no modality too.
    """

    cases: int
    wsi: int
    report: int
    rna: int
    wsi_report: int
    wsi_rna: int
    report_rna: int
    all_three: int

    @property
    def pairs(self) -> int:
        """The sum of the three kinds of pairs, the column "total" of the paper's table."""
        return self.wsi_report + self.wsi_rna + self.report_rna


def pair_counts(cases: Iterable[Case]) -> PairCounts:
    """Count the modalities of cases by what their rows name, without opening a file."""
    present = [(bool(case.slides), bool(case.report), bool(case.rna)) for case in cases]
    return PairCounts(
        cases=len(present),
        wsi=sum(wsi for wsi, _, _ in present),
        report=sum(report for _, report, _ in present),
        rna=sum(rna for _, _, rna in present),
        wsi_report=sum(wsi and report for wsi, report, _ in present),
        wsi_rna=sum(wsi and rna for wsi, _, rna in present),
        report_rna=sum(report and rna for _, report, rna in present),
        all_three=sum(wsi and report and rna for wsi, report, rna in present),
    )
