"""The derivations give the stated counts on small tables that hold every trap."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mstar.cohorts.labels_config import LabelsBuildConfig
from mstar.cohorts.labels_job import build_labels
from mstar.cohorts.labels_result import TaskOutcome
from mstar.data.label_build.attributes import ATTRIBUTES
from mstar.data.label_build.datasets import DATASETS
from mstar.data.label_build.mutations import NON_SILENT, SILENT, read_mafs
from mstar.data.label_build.population import Member
from mstar.data.label_build.recipes import read_derivations
from mstar.data.label_build.settings import LabelSettings
from mstar.data.label_build.sources import Sources
from mstar.data.label_build.survival import read_survival
from mstar.data.labels import ClassLabel, SurvivalLabel
from mstar.data.task_registry import read_task_registry
from mstar.errors import ConfigError, TableError
from support.published_files import aliquot, case, maf, put, tcga, workbook, write_cohort


def built(sources: Path, cohort: str, task: str, **settings: Any) -> TaskOutcome:
    """One task."""
    config = LabelsBuildConfig(
        sources=str(sources),
        out="unused",
        cohort=(cohort,) if cohort else (),
        tasks=(task,),
        settings=LabelSettings(**settings),
    )
    (outcome,) = build_labels(config)
    return outcome


def classes(outcome: TaskOutcome) -> dict[str, str]:
    """Last four characters of a case → its class."""
    assert outcome.state == "built", outcome.reason
    return {x.case_id[-4:]: x.label for x in outcome.derived.labels if isinstance(x, ClassLabel)}


def times(outcome: TaskOutcome) -> dict[str, tuple[float, int]]:
    """Last four characters of a case → months and event."""
    assert outcome.state == "built", outcome.reason
    found = [label for label in outcome.derived.labels if isinstance(label, SurvivalLabel)]
    return {label.case_id[-4:]: (label.time_months, label.event) for label in found}


@pytest.fixture
def breast(tmp_path: Path) -> str:
    """Eight breast cancers, the last without slides, and a lung cancer."""
    cases = [case(n, "BRCA", slides=2 if n == 1 else 1) for n in range(1, 8)]
    cases += [case(8, "BRCA", slides=0), case(9, "LUAD")]
    return write_cohort(tmp_path / "C", cases)


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


CDR_HEAD = "bcr_patient_barcode,type,OS,OS.time,DFI,DFI.time,Redaction\n"
CDR_ROWS = (
    f"{tcga(1)},BRCA,1,365.25,0,100,\n"
    f"{tcga(2)},BRCA,0,0,1,50,\n"  # time 0
    f"{tcga(3)},BRCA,0,-5,#N/A,#N/A,\n"
    f"{tcga(4)},BRCA,[Not Available],10,,,\n"
    f"{tcga(5)},BRCA,1,100,,,Redacted\n"
    f"{tcga(6)},BRCA,0,730.5,1,[Not Applicable],\n"
)


def test_survival_drops_by_reason(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/cdr.csv", CDR_HEAD + CDR_ROWS)
    outcome = built(tmp_path / "S", breast, "tcga_brca_os")
    assert times(outcome) == {"0001": (pytest.approx(12.0), 1), "0006": (pytest.approx(24.0), 0)}
    assert outcome.derived.dropped == {
        "time 0": 1,
        "a negative time": 1,
        "no survival status": 1,
        "redacted by TCGA-CDR": 1,
        "in no table": 1,
        "no slide": 1,
    }
    kept = built(tmp_path / "S", breast, "tcga_brca_os", redacted="keep")
    assert times(kept)["0005"] == (pytest.approx(100 / 30.4375), 1)


def test_disease_free_survival_is_cbioportals_unless_asked(tmp_path: Path, breast: str) -> None:
    put(tmp_path, "S/tcga/cdr.csv", CDR_HEAD + CDR_ROWS)
    outcome = built(tmp_path / "S", breast, "tcga_brca_dfs")
    assert outcome.state == "failed"
    assert "DFS_MONTHS" in outcome.reason
    by_cdr = times(built(tmp_path / "S", breast, "tcga_brca_dfs", dfs_source="cdr-dfi"))
    assert set(by_cdr) == {"0001", "0002"}
    put(
        tmp_path,
        "S/tcga/data_clinical_patient.txt",
        "#Patient Identifier\tx\ty\nPATIENT_ID\tDFS_MONTHS\tDFS_STATUS\n"
        f"{tcga(1)}\t7.5\t1:Recurred/Progressed\n{tcga(2)}\t9\t0:DiseaseFree\n{tcga(3)}\t\t\n",
    )
    found = built(tmp_path / "S", breast, "tcga_brca_dfs")
    assert times(found) == {"0001": (7.5, 1), "0002": (9.0, 0)}
    assert found.derived.dropped["no survival time or status"] == 1


def test_survival_of_one_case_said_twice(tmp_path: Path, breast: str) -> None:
    head = "_PATIENT,sample,OS,OS.time\n"
    same = f"{tcga(1)},{tcga(1)}-01,1,300\n{tcga(1)},{tcga(1)}-11,1,300\n"
    other = f"{tcga(2)},{tcga(2)}-01,1,300\n{tcga(2)},{tcga(2)}-06,1,400\n"
    put(tmp_path, "S/tcga/xena.csv", head + same + other)
    outcome = built(tmp_path / "S", breast, "tcga_brca_os")
    assert set(times(outcome)) == {"0001"}
    assert outcome.derived.dropped["rows that contradict one another"] == 1


def test_fusion_tasks_take_cases_with_expression(tmp_path: Path) -> None:
    cases = [case(1, "LUAD", rna="x"), case(2, "LUAD"), case(3, "LUAD", rna="y")]
    cohort = write_cohort(tmp_path / "C", cases)
    rows = "".join(f"{tcga(n)},LUAD,1,300,,,\n" for n in (1, 2, 3))
    put(tmp_path, "S/tcga/cdr.csv", CDR_HEAD + rows)
    fusion = built(tmp_path / "S", cohort, "tcga_luad_os_fusion")
    assert set(times(fusion)) == {"0001", "0003"}
    assert fusion.derived.dropped == {"no gene expression": 1}
    assert set(times(built(tmp_path / "S", cohort, "tcga_luad_os"))) == {"0001", "0002", "0003"}


def test_overall_survival_of_the_cohort_itself(tmp_path: Path) -> None:
    cases = [case(1, "KIRC", os_months=5.0, os_event=1), case(2, "KIRC")]
    cohort = write_cohort(tmp_path / "C", cases)
    put(tmp_path, "S/tcga/note.txt", "nothing here\n")
    outcome = built(tmp_path / "S", cohort, "tcga_kirc_os")
    assert times(outcome) == {"0001": (5.0, 1)}


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


@pytest.mark.parametrize("cut", ["0", "-1", "high", "inf"])
def test_settings_that_cannot_be_meant(cut: str) -> None:
    with pytest.raises(ConfigError, match="tmb-cutoff"):
        LabelSettings(tmb_cutoff=cut)


def test_a_time_that_is_no_number_is_named(tmp_path: Path) -> None:
    put(tmp_path, "tcga/cdr.csv", CDR_HEAD + f"{tcga(1)},BRCA,1,soon,,,\n")
    sources = Sources(str(tmp_path), DATASETS["TCGA"])
    member = Member(case_id=tcga(1), slides=("a",))
    with pytest.raises(TableError, match=r"row 1, column OS.time: expected a number, got 'soon'"):
        read_survival(sources, "OS", LabelSettings(), [member])
