"""Stains, subtypes and users' own rows: the stated counts on small tables that hold every trap."""

from pathlib import Path

import pytest

from mstar.cohorts.labels_config import LabelsBuildConfig
from mstar.cohorts.labels_job import build_labels
from mstar.data.label_build.attributes import ATTRIBUTES
from mstar.data.label_build.datasets import DATASETS
from mstar.data.label_build.recipes import read_derivations
from mstar.data.task_registry import read_task_registry
from mstar.errors import TableError
from support.built_labels import built, classes, write_breast_cohort
from support.published_files import aliquot, case, maf, put, tcga, workbook, write_cohort


@pytest.fixture
def breast(tmp_path: Path) -> str:
    return write_breast_cohort(tmp_path / "C")


IHC = (
    "bcr_patient_uuid\tbcr_patient_barcode\ter_status_by_ihc\ther2_status_by_ihc\tHER2_FISH_STATUS\n"
    "bcr_patient_uuid\tbcr_patient_barcode\ter_status_by_ihc\ther2_status_by_ihc\tHER2_FISH_STATUS\n"
    "CDE_ID:\tCDE_ID:2003301\tCDE_ID:2957359\tCDE_ID:2957563\tCDE_ID:1\n"
    f"u\t{tcga(1)}\tPositive\tEquivocal\tPositive\n"
    f"u\t{tcga(2)}\tNegative\tNegative\tPositive\n"
    f"u\t{tcga(3)}\tIndeterminate\tEquivocal\t[Not Available]\n"
    f"u\t{tcga(4)}\t[Not Evaluated]\t[Not Evaluated]\tNegative\n"
    f"u\t{tcga(5)}\t positive \tPositive\t\n"
)


def test_stains(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/clinical_patient_brca.txt", IHC)
    er = built(tmp_path / "S", breast, "tcga_brca_er_ihc")
    assert classes(er) == {"0001": "positive", "0002": "negative", "0005": "positive"}
    assert er.derived.dropped == {
        "ER_STATUS_BY_IHC: Indeterminate": 1,
        "ER_STATUS_BY_IHC unknown": 1,
        "in no table": 2,
        "no slide": 1,
    }
    her2 = classes(built(tmp_path / "S", breast, "tcga_brca_her2_ihc"))
    assert her2 == {"0002": "negative", "0005": "positive"}
    settled = classes(built(tmp_path / "S", breast, "tcga_brca_her2_ihc", equivocal="settle"))
    assert settled == {"0001": "positive", "0002": "negative", "0005": "positive"}


def test_rows_of_a_case_that_contradict_decide_nothing(tmp_path: Path, breast: str) -> None:
    rows = (
        f"{tcga(1)}-01\tIDC\n{tcga(1)}-06\tILC\n"  # the primary decides
        f"{tcga(2)}-01\tIDC\n{tcga(2)}-01\tILC\n"
        f"{tcga(3)}-11\tIDC\n"  # normal tissue
        f"{tcga(4)}-01\tMDLC\n"
        f"{tcga(5)}-01\t\n{tcga(5)}-01\tILC\n"
    )
    put(tmp_path, "S/tcga/data_clinical_sample.txt", f"SAMPLE_ID\tONCOTREE_CODE\n{rows}")
    outcome = built(tmp_path / "S", breast, "tcga_brca_path_subtype")
    assert classes(outcome) == {"0001": "IDC", "0005": "ILC"}
    assert len(outcome.derived.labels) == 3, "a task of slides: two of case 1"
    assert outcome.derived.dropped["rows that contradict one another"] == 1
    assert outcome.derived.dropped["ONCOTREE_CODE: MDLC"] == 1


def test_subtypes_of_tables(tmp_path: Path, breast: str) -> None:
    rows = "".join(
        f"{tcga(n)}\t{value}\n"
        for n, value in enumerate(("BRCA_Basal", "BRCA_Her2", "BRCA_LumA", "BRCA_Normal"), start=1)
    )
    put(tmp_path, "S/tcga/data_clinical_patient.txt", f"PATIENT_ID\tSUBTYPE\n{rows}")
    outcome = built(tmp_path / "S", breast, "tcga_brca_mol_subtype")
    assert classes(outcome) == {"0001": "TNBC", "0002": "HER2", "0003": "LumA"}
    assert outcome.derived.dropped["SUBTYPE: BRCA_Normal"] == 1


def test_consensus_subtypes_by_the_call_that_is_asked_for(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "C", [case(1, "COAD"), case(2, "READ"), case(3, "BRCA")])
    final = "CMS_final_network_plus_RFclassifier_in_nonconsensus_samples"
    put(
        tmp_path,
        "S/tcga/cms_labels_public_all.txt",
        f"sample\tdataset\tCMS_network\t{final}\n{tcga(1)}\ttcga\tNOLBL\tCMS1\n"
        f"{tcga(2)}\ttcga\tCMS4\tCMS4\n{tcga(3)}\ttcga\tCMS2\tCMS2\n",
    )
    both = classes(built(tmp_path / "S", cohort, "tcga_crc_mol_subtype"))
    assert both == {"0001": "CMS1", "0002": "CMS4"}
    network = built(tmp_path / "S", cohort, "tcga_crc_mol_subtype", cms_call="network")
    assert classes(network) == {"0002": "CMS4"}


def test_idh_of_a_workbook_below_a_title_or_of_mutations(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "C", [case(1, "GBM"), case(2, "LGG"), case(3, "LGG")])
    rows: list[list[str | float | None]] = [["Table S1. Clinical data"], [None]]
    rows += [["Case", "Study", "IDH status"], [tcga(1), "GBM", "WT"], [tcga(2), None, "Mutant"]]
    (tmp_path / "S" / "tcga").mkdir(parents=True)
    book = workbook({"Read me": [["About"]], "S1A": rows})
    (tmp_path / "S" / "tcga" / "glioma.xlsx").write_bytes(book)
    found = classes(built(tmp_path / "S", cohort, "tcga_gbmlgg_mol_subtype"))
    assert found == {"0001": "negative", "0002": "positive"}
    put(
        tmp_path,
        "S/tcga/x.maf",
        maf(("IDH2", "Missense_Mutation", aliquot(3)), ("TP53", "Silent", aliquot(2))),
    )
    mutated = built(tmp_path / "S", cohort, "tcga_gbmlgg_mol_subtype", idh_source="mutations")
    assert classes(mutated) == {"0002": "negative", "0003": "positive"}


def test_every_public_task_has_one_derivation_whose_classes_are_its_own() -> None:
    registry = read_task_registry()
    recipes = read_derivations()
    tasks = [*registry.tasks, *registry.auxiliary]
    public = {
        task.task_id: task
        for task in tasks
        if task.access == "public"
        and task.source_certainty != "unlisted"
        and task.kind not in ("retrieval", "report_generation")
    }
    assert set(recipes) == set(public), "no task without a way to its labels, none unknown"
    for task_id, recipe in recipes.items():
        if recipe.derivation != "category":
            continue
        attribute = ATTRIBUTES[recipe.arguments["attribute"]]
        made = set(attribute.values.values()) | {label for _, label in attribute.patterns}
        assert made - {""} == set(public[task_id].class_names), task_id
    assert {recipe.dataset for recipe in recipes.values()} == set(DATASETS)


def test_rows_of_users_name_the_unnamed_pairs(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/x.maf", maf(("MAP3K1", "Missense_Mutation", aliquot(1))))
    table = put(
        tmp_path,
        "mine.csv",
        "task_id,derivation,dataset,cancer_types,arguments\n"
        "tcga_mutation_unlisted_1,mutation,TCGA,BRCA,gene=MAP3K1\n",
    )
    config = LabelsBuildConfig(
        sources=str(tmp_path / "S"),
        out="unused",
        cohort=(breast,),
        tasks=("tcga_mutation_unlisted_1",),
        derivations=(str(table),),
    )
    (outcome,) = build_labels(config)
    assert classes(outcome) == {"0001": "mutated"}
    table.write_text("task_id,derivation,dataset,arguments\nx,mutation,TCGA,endpoint=OS\n")
    with pytest.raises(TableError, match=r"row 1, column arguments: expected gene=…"):
        build_labels(config)
