"""Facts of generated cohorts: true of each case, and named by the phrases of its report."""

from pathlib import Path

import pandas as pd

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import iter_cases
from mstar.cohorts.generated.facts import write_facts
from mstar.cohorts.generated.reports import compose, compose_shown


def test_facts_are_the_cases_own_factors(tmp_path: Path) -> None:
    config = GenerateConfig(out=str(tmp_path), cases=60)
    cases = list(iter_cases(config))
    write_facts(str(tmp_path), config, cases)
    facts = pd.read_csv(tmp_path / "truth/facts.csv", dtype=str)
    wide = facts.pivot(index="case_id", columns="fact", values="level")
    for case in cases:
        row = wide.loc[case.case_id]
        assert [row["cancer_type"], row["grade"]] == [case.cancer_type, str(case.grade)]
        assert row["mutation"] == ("mutated" if case.mutation else "wildtype")
        third = min(int(case.pathway * 3), 2)
        assert row["pathway"] == ("low", "medium", "high")[third]
    phrases = pd.read_csv(tmp_path / "truth/fact_phrases.csv", dtype=str)
    assert set(phrases["level"][phrases["fact"] == "grade"]) == {"1", "2", "3"}
    assert not phrases["phrase"].duplicated().any()


def test_shown_findings_are_sentences_of_the_report_itself() -> None:
    config = GenerateConfig(out="unused", cases=80, noise=0.0)
    for case in iter_cases(config):
        report = " ".join(compose(config, case).replace("-\n", "-").split())
        report = report.replace(" ", "").replace("-", "")
        shown = compose_shown(config, case)
        assert shown.count(". ") >= 3  # four findings; none is silent without noise
        for sentence in shown.split(". "):
            assert sentence.rstrip(".").replace(" ", "").replace("-", "") in report
        assert not any(word in shown for word in ("emboli", "Lymphovascular", "Vascular"))
