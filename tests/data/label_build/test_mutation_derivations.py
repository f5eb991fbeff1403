"""Mutation status and burden: the stated counts on small tables that hold every trap."""

from pathlib import Path

import pandas as pd
import pytest

from mstar.data.label_build.mutations import NON_SILENT, SILENT, read_mafs
from mstar.data.label_build.settings import LabelSettings
from mstar.data.labels import ClassLabel
from mstar.errors import ConfigError, TableError
from support.built_labels import built, classes, write_breast_cohort
from support.published_files import aliquot, case, maf, put, tcga, write_cohort


@pytest.fixture
def breast(tmp_path: Path) -> str:
    return write_breast_cohort(tmp_path / "C")


MUTATIONS = (
    ("TP53", "Missense_Mutation", aliquot(1)),  # twice in one gene,
    ("TP53", "Nonsense_Mutation", aliquot(1)),
    ("TP53", "Missense_Mutation", aliquot(1, last="08")),  # and in a second aliquot: one case
    ("TP53", "Silent", aliquot(2)),  # silent alone: of the wild type
    ("TP53", "Intron", aliquot(2)),
    ("TTN", "Silent", aliquot(3)),  # sequenced, for it has a mutation of another gene
    ("TP53", "Missense_Mutation", aliquot(4, sample="11")),  # normal tissue: says nothing
    ("TP53", "Missense_Mutation", aliquot(5, sample="06")),  # a metastasis, and no other sample
    ("TP53", "Missense_Mutation", aliquot(6, sample="06")),  # a metastasis beside a primary
    ("TTN", "Missense_Mutation", aliquot(6)),
    ("TP53", "Missense_Mutation", aliquot(8)),  # no slide
    ("TP53", "Missense_Mutation", aliquot(9)),  # another cancer
    ("TP53", "Missense_Mutation", aliquot(77)),  # not in the cohort
)


def test_mutation_status_with_every_trap(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/mc3.maf", maf(*MUTATIONS))
    outcome = built(tmp_path / "S", breast, "tcga_brca_tp53_mutation")
    assert classes(outcome) == {
        "0001": "mutated",
        "0002": "wildtype",
        "0003": "wildtype",
        "0005": "mutated",
        "0006": "wildtype",
    }
    assert outcome.derived.dropped == {"not sequenced": 2, "no slide": 1}
    first = outcome.derived.labels[0]
    assert len(first.slides) == 2, "all slides of the case are its bag"


def test_a_case_list_tells_the_wild_type_from_the_unknown(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/data_mutations.txt", maf(*MUTATIONS))
    put(
        tmp_path,
        "S/tcga/case_lists/cases_sequenced.txt",
        f"cancer_study_identifier: x\ncase_list_ids: {tcga(4)}-01\t{tcga(7)}-01\n",
    )
    put(tmp_path, "S/tcga/case_lists/cases_cna.txt", f"case_list_ids: {tcga(8)}-01\n")
    outcome = built(tmp_path / "S", breast, "tcga_brca_tp53_mutation")
    assert classes(outcome)["0004"] == classes(outcome)["0007"] == "wildtype"
    assert outcome.derived.dropped == {"no slide": 1}


def test_drivers_alone(tmp_path: Path, breast: str) -> None:
    text = maf(("TP53", "Missense_Mutation", aliquot(1)), change="p.R175H")
    text += f"TP53\t17\tMissense_Mutation\t{aliquot(2)}\tp.A1B\n"
    put(tmp_path, "S/tcga/x.maf", text)
    table = put(tmp_path, "drivers.csv", "gene,protein_change\nTP53,R175H\n")
    settings = {"mutation": "drivers", "drivers": str(table)}
    found = classes(built(tmp_path / "S", breast, "tcga_brca_tp53_mutation", **settings))
    assert found == {"0001": "mutated", "0002": "wildtype"}


def test_a_table_with_a_column_a_gene(tmp_path: Path, breast: str) -> None:
    rows = [f"s\t{tcga(n)}-01\t{cell}" for n, cell in enumerate(("R175H", "WT", "NS"), start=1)]
    put(tmp_path, "S/tcga/mutations.txt", "STUDY_ID\tSAMPLE_ID\tTP53\n" + "\n".join(rows) + "\n")
    outcome = built(tmp_path / "S", breast, "tcga_brca_tp53_mutation")
    assert classes(outcome) == {"0001": "mutated", "0002": "wildtype"}
    assert outcome.derived.dropped["not sequenced"] == 5


def test_an_unknown_class_of_mutation_is_an_error_with_a_way_out(
    tmp_path: Path, breast: str
) -> None:
    put(tmp_path, "S/tcga/x.maf", maf(("TP53", "Odd_Thing", aliquot(1))))
    outcome = built(tmp_path / "S", breast, "tcga_brca_tp53_mutation")
    assert outcome.state == "failed"
    assert "'Odd_Thing'" in outcome.reason
    assert "--non-silent Odd_Thing" in outcome.reason
    more = {"non_silent": ("Odd_Thing",)}
    found = classes(built(tmp_path / "S", breast, "tcga_brca_tp53_mutation", **more))
    assert found == {"0001": "mutated"}


def test_mafs_agree_with_pandas(tmp_path: Path) -> None:
    kinds = sorted(NON_SILENT | SILENT)
    rows = [
        (("TP53", "TTN", "KRAS")[n % 3], kinds[(n * 7) % len(kinds)], aliquot(n * 13 % 40))
        for n in range(600)
    ]
    path = put(tmp_path, "x.maf", maf(*rows))
    found = read_mafs([str(path)], ["TP53", "KRAS"])
    frame = pd.read_csv(path, sep="\t", comment="#")
    counted = frame[frame.Variant_Classification.isin(NON_SILENT)]
    for gene in ("TP53", "KRAS"):
        expected = set(counted[counted.Hugo_Symbol == gene].Tumor_Sample_Barcode)
        assert found.mutated[gene] == expected
    assert dict(found.burden) == counted.Tumor_Sample_Barcode.value_counts().to_dict()
    assert found.sequenced == set(frame.Tumor_Sample_Barcode)


def test_a_maf_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "x.maf", maf(("TP53", "Silent", aliquot(1))) + "TP53\t17\tSil")
    with pytest.raises(TableError, match="cut"):
        read_mafs([str(path)], ["TP53"])


def test_cbioportals_samples_of_cptac_find_their_patients(tmp_path: Path) -> None:
    put(
        tmp_path,
        "S/cptac-brca/data_clinical_sample.txt",
        "PATIENT_ID\tSAMPLE_ID\n01BR001\tCPT1\n01BR002\tCPT2\n",
    )
    rows = (("TP53", "Missense_Mutation", "CPT1"), ("TP53", "Silent", "CPT2"))
    put(tmp_path, "S/cptac-brca/data_mutations.txt", maf(*rows))
    task = "cptac_brca_tp53_mutation"
    missing = built(tmp_path / "S", "", task)
    assert missing.state == "failed"
    assert "slides.csv" in missing.reason
    put(
        tmp_path,
        "S/cptac-brca/slides.csv",
        "path,case_id\n/x/a.svs,01BR001\n/x/b.svs,01BR002\n/x/c.svs,01BR003\n",
    )
    outcome = built(tmp_path / "S", "", task)
    assert {x.case_id: x.label for x in outcome.derived.labels if isinstance(x, ClassLabel)} == {
        "01BR001": "mutated",
        "01BR002": "wildtype",
    }
    assert outcome.derived.dropped == {"not sequenced": 1}


def lung_mafs(folder: Path) -> str:
    """Case 1: 20 mutations in one aliquot and 30 in another; case 2: 9; case 3: 1 silent."""
    rows = [("TTN", "Missense_Mutation", aliquot(1))] * 20
    rows += [("TTN", "Missense_Mutation", aliquot(1, last="08"))] * 30
    rows += [("TTN", "Missense_Mutation", aliquot(2))] * 9 + [("TTN", "Silent", aliquot(3))]
    put(folder, "S/tcga/x.maf", maf(*rows))
    return write_cohort(folder / "C", [case(n, "LUAD") for n in range(1, 5)])


def test_burden_counts_one_aliquot_and_no_silent_ones(tmp_path: Path) -> None:
    cohort = lung_mafs(tmp_path)
    outcome = built(tmp_path / "S", cohort, "tcga_nsclc_tmb", tmb_megabases=2.0)
    assert classes(outcome) == {"0001": "high", "0002": "low", "0003": "low"}, "20 / 2 is high"
    assert outcome.derived.dropped == {"not sequenced": 1}
    low = built(tmp_path / "S", cohort, "tcga_nsclc_tmb", tmb_megabases=2.01)
    assert set(classes(low).values()) == {"low"}
    median = built(tmp_path / "S", cohort, "tcga_nsclc_tmb", tmb_cutoff="median")
    assert classes(median) == {"0001": "high", "0002": "low", "0003": "low"}


def test_a_stated_burden_is_taken(tmp_path: Path) -> None:
    cohort = lung_mafs(tmp_path)
    rows = f"{tcga(1)}-01\t9.99\n{tcga(2)}-01\t10\n{tcga(3)}-01\t\n"
    put(tmp_path, "S/tcga/data_clinical_sample.txt", f"SAMPLE_ID\tTMB_NONSYNONYMOUS\n{rows}")
    outcome = built(tmp_path / "S", cohort, "tcga_nsclc_tmb")
    assert classes(outcome) == {"0001": "low", "0002": "high"}


@pytest.mark.parametrize("cut", ["0", "-1", "high", "inf"])
def test_settings_that_cannot_be_meant(cut: str) -> None:
    with pytest.raises(ConfigError, match="tmb-cutoff"):
        LabelSettings(tmb_cutoff=cut)
