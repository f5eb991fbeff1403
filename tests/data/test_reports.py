"""Reports: three kinds of tables in, stated cleaning, one report a case, text in no message."""

import hashlib
import logging
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.report_cleaning import (
    BOILERPLATE,
    STEPS,
    clean_report,
    drop_boilerplate,
    drop_invisible,
    drop_repeats,
    join_hyphenated,
    mend_line_breaks,
    mend_line_stops,
    run_steps,
    tidy_spaces,
)
from mstar.data.reports import Report, ReportTable, clean_reports, read_reports, write_reports
from mstar.errors import TableError

UUID = "8C5F4E0A-3D52-4C1B-9A55-0A1B2C3D4E5F"
SECRET = "invasive lobular carcinoma of the left breast"

# words, marks and breaks that the steps look for, in every order
FRAGMENTS = st.sampled_from(
    [
        *"carci- noma well- differentiated of. the ,. Grade a. b. Page 1 of 3. MRN: XXX".split(),
        *["\n", "\r\n", "\n\n", "  ", "\t", "\u00ad", "\ufeff", "\u2028", "-\n", "-. ", ". ", "!"],
        "\nPage 2 of 3\n",
        "Name: XXX  DOB: 01/02/1950\n",
        "[REDACTED]. ",
        "the margins are free of tumour. ",
        "the mar-\ngins are free of tumour. ",
        "The margins are free of tumour\n",
        "-----\n",
    ]
)
MESSY = st.one_of(st.text(max_size=120), st.lists(FRAGMENTS, max_size=25).map(" ".join))


def write_csv(path: Path, **columns: list[object]) -> str:
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


# --- cleaning -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(MESSY)
def test_cleaning_a_cleaned_report_changes_nothing(text: str) -> None:
    once = run_steps(text)
    again = run_steps(once.text)
    assert again.text == once.text
    assert again.changed_by == frozenset()
    assert (once.text == text) == (not once.changed_by)


@settings(max_examples=200, deadline=None)
@given(MESSY)
def test_cleaning_only_ever_takes_away(text: str) -> None:
    """What is left are characters of the report, in its order; no word is made up."""
    cleaned = iter(drop_invisible(text))
    assert all(c in cleaned for c in clean_report(text) if not c.isspace())
    assert not set("\r\t\u00ad\ufeff") & set(clean_report(text))


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (drop_invisible, "\ufeffcar\u00adcinoma\x07\r\nof\x0clung", "carcinoma\nof\nlung"),
        (tidy_spaces, "  two\u00a0 \t words \n \n\n\n end ", "two words\n\nend"),
        (join_hyphenated, "adeno-\ncarcinoma", "adenocarcinoma"),
        (join_hyphenated, "adeno-. carcinoma", "adenocarcinoma"),
        (join_hyphenated, "Well-\ndifferentiated", "Well-differentiated"),
        (join_hyphenated, "Ki-67 T2-\nN0, breast-\nLeft", "Ki-67 T2-\nN0, breast-\nLeft"),
        (mend_line_breaks, "carcinoma of\nthe lung", "carcinoma of the lung"),
        (mend_line_breaks, "free.\nthe end:\nleft", "free.\nthe end:\nleft"),
        (mend_line_breaks, "Parts\na. skin\nB. lung", "Parts\na. skin\nB. lung"),
        (mend_line_stops, "part of. the lung,. left", "part of the lung, left"),
        (mend_line_stops, "no tumour. it is free. A. OR.", "no tumour. it is free. A. OR."),
        (drop_repeats, "Cut in five thin slices. A. cut in FIVE thin slices!", None),
        (drop_repeats, "Margins are all free. X. Margins are all free.", "same"),
    ],
)
def test_each_step_does_what_it_states(step: object, before: str, after: str | None) -> None:
    assert callable(step)
    expected = {None: "Cut in five thin slices. A.", "same": before}.get(after, after)
    assert step(before).strip() == expected


@pytest.mark.parametrize(
    "passage",
    [
        "Page 1 of 3",
        "page 12/14.",
        "(Continued on next page)",
        "*** End of Report ***",
        "FINAL SURGICAL PATHOLOGY REPORT",
        "[REDACTED]",
        "XXXXX",
        "TCGA-A2-A0T2-01Z-00-DX1",
        f"UUID: {UUID}",
        "Electronically signed by: XXX",
        "Printed on 01/02/XX",
        "-----------",
        "MRN: 123-45-67",
        "Patient Name: XXX   DOB: XX/XX/1950  Sex",
        "Accession Number: S12-3456",
        "Date of collection: 12/03/2009",
    ],
)
def test_boilerplate_goes_and_its_neighbours_stay(passage: str) -> None:
    gone = not passage.endswith("Sex")  # the odd one out: a word that no pattern states
    cleaned = drop_boilerplate(f"Left breast.\n{passage}\nGrade 2.")
    assert cleaned == ("Left breast.\nGrade 2." if gone else f"Left breast.\n{passage}\nGrade 2.")


@pytest.mark.parametrize(
    "passage",
    [
        "Specimen: left breast",
        "Page 3 of the outside report shows carcinoma",
        "Date of surgery: carcinoma found",
        "Name of the tumour: ductal carcinoma",
        "pT2 N0 M0",
        "3 x 2 x 1 cm",
        "Case number two shows grade 3",
        "No residual tumour",
    ],
)
def test_findings_are_never_boilerplate(passage: str) -> None:
    assert drop_boilerplate(f"A.\n{passage}.\nB.") == f"A.\n{passage}.\nB."


def test_flat_reports_are_cleaned_like_those_with_lines() -> None:
    """TCGA-Reports has no lines left, but a full stop after each."""
    lines = [
        "Surgical pathology report",
        "Page 1 of 2",
        "The invasive carci-",
        "noma is seen",
    ]
    flat = " ".join(line if line.endswith(":") else f"{line}." for line in lines)
    assert clean_report(flat) == "The invasive carcinoma is seen."
    assert clean_report("\n".join(lines)) == "The invasive carcinoma is seen"


def test_a_passage_is_repeated_however_its_lines_were_broken() -> None:
    """Mending makes passages equal that were not, so the steps run until nothing changes."""
    whole = "The invasive carcinoma of the lung is seen."
    assert clean_report(f"The invasive carci-\nnoma of. the lung is seen. {whole}") == whole


def test_long_reports_are_cleaned_in_linear_time() -> None:
    """A pattern that backtracks would not end on this."""
    for piece in ("Name: 1 1 1 XXX ", "carci-\n", "X X# ", "a. ", "Page 1 of 2 ", "\n \n", "----"):
        run_steps(piece * 20_000)


def test_boilerplate_patterns_are_a_table_of_names() -> None:
    assert all(name == name.lower() for name in BOILERPLATE)
    assert len({step.__name__ for step in STEPS}) == len(STEPS)
    assert all(step.__doc__ for step in STEPS)


def test_counts_say_what_each_step_changed() -> None:
    table = ReportTable(
        reports={
            "a": Report(text="Grade  2."),
            "b": Report(text="carci-\nnoma  x"),
            "c": Report(text="Page 1 of 2"),
            "d": Report(text="kept   as it is", model="m", prompt_digest="0" * 64),
            "e": Report(text="Clean."),
        },
        empty=("z",),
    )
    cleaned, counts = clean_reports(table)
    assert {case: report.text for case, report in cleaned.items()} == {
        "a": "Grade 2.",
        "b": "carcinoma x",
        "d": "kept   as it is",
        "e": "Clean.",
    }
    assert cleaned.empty == ("c", "z")
    assert list(counts.changed) == [step.__name__ for step in STEPS]
    assert {name: n for name, n in counts.changed.items() if n} == {
        "tidy_spaces": 2,
        "drop_boilerplate": 1,
        "join_hyphenated": 1,
    }
    assert (counts.reports, counts.unchanged, counts.emptied, counts.taken_as_is) == (4, 1, 1, 1)


# --- tables -------------------------------------------------------------------------------------


def test_plain_table_as_pandas_reads_it(tmp_path: Path) -> None:
    texts = ['She said "no",\nthen\r\nleft.', "ünïcode µm", " spaces kept ", "007"]
    uri = write_csv(tmp_path / "r.csv", case_id=["007", "b", "c", "d"], text=texts, other=[1] * 4)
    table = read_reports(uri)
    expected = pd.read_csv(uri, dtype=str)
    assert {c: r.text for c, r in table.items()} == dict(
        zip(expected["case_id"], texts, strict=True)
    )
    assert table.models == {"": 4}


@pytest.mark.parametrize("packed", ["csv", "csv.gz", "zip"])
def test_tcga_reports_as_published(tmp_path: Path, packed: str) -> None:
    frame = pd.DataFrame(
        {
            "patient_filename": [f"TCGA-A2-A0T2.{UUID}", f"TCGA-OR-A5J1.{UUID.lower()}"],
            "text": ["Left, breast.", "Adrenal."],
        }
    )
    uri = tmp_path / f"TCGA_Reports.{'csv.zip' if packed == 'zip' else packed}"
    if packed == "zip":
        with zipfile.ZipFile(uri, "w") as archive:
            archive.writestr("TCGA_Reports.csv", frame.to_csv(index=False))
    else:
        frame.to_csv(uri, index=False)
    table = read_reports(str(uri))
    assert {c: r.text for c, r in table.items()} == {
        "TCGA-A2-A0T2": "Left, breast.",
        "TCGA-OR-A5J1": "Adrenal.",
    }


def test_tcga_name_that_is_no_barcode_is_an_error(tmp_path: Path) -> None:
    names = [f"TCGA-A2-A0T2.{UUID}", "breast_17.pdf"]
    uri = write_csv(tmp_path / "r.csv", patient_filename=names, text=["a", "b"])
    with pytest.raises(TableError, match=r"row 2, column patient_filename.*breast_17"):
        read_reports(uri)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("case_id", ["a", "b", "a"]),
        ("patient_filename", [f"TCGA-A2-A0T{i}.{UUID}" for i in (1, 2)] + ["TCGA-A2-A0T1"]),
    ],
)
def test_second_report_of_a_case_is_an_error(tmp_path: Path, name: str, ids: list[str]) -> None:
    uri = write_csv(tmp_path / "r.csv", **{name: list(ids), "text": ["x", "y", "z"]})
    with pytest.raises(TableError, match=rf"row 3, column {name}.*row 1 has it"):
        read_reports(uri)


def test_id_with_blanks_is_an_error(tmp_path: Path) -> None:
    uri = write_csv(tmp_path / "r.csv", case_id=["a", "b "], text=["x", "y"])
    with pytest.raises(TableError, match="row 2, column case_id: expected an id without blanks"):
        read_reports(uri)


def test_reports_cleaned_elsewhere_keep_their_origin(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"prompt").hexdigest()
    uri = write_csv(
        tmp_path / "r.csv",
        case_id=["a", "b"],
        text=["Well  differentiated.", "raw   text"],
        model=["some-model-4", None],
        prompt_digest=[f"sha256:{digest}", None],
    )
    table, counts = clean_reports(read_reports(uri))
    assert table["a"] == Report(
        text="Well  differentiated.", model="some-model-4", prompt_digest=f"sha256:{digest}"
    )
    assert table["b"] == Report(text="raw text")
    assert table.models == {"": 1, "some-model-4": 1}
    assert counts.taken_as_is == 1


@pytest.mark.parametrize(
    ("model", "digest"), [("m", None), (None, "0" * 64), ("m", "Please clean this report")]
)
def test_model_without_a_prompt_digest_is_an_error(
    tmp_path: Path, model: str | None, digest: str | None
) -> None:
    uri = write_csv(
        tmp_path / "r.csv",
        case_id=["a", "b"],
        text=["x", "y"],
        model=["m", model],
        prompt_digest=["0" * 64, digest],
    )
    with pytest.raises(TableError, match="row 2, column prompt_digest"):
        read_reports(uri)


@pytest.mark.parametrize("text", [None, "", "NA", "   ", "...", "\n\n"])
def test_reports_without_a_word_are_listed_not_kept(tmp_path: Path, text: str | None) -> None:
    uri = write_csv(tmp_path / "r.csv", case_id=["b", "a", "c"], text=["x", text, text])
    table = read_reports(uri)
    assert (list(table), table.empty) == (["b"], ("a", "c"))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abcXYZ-_ 07", min_size=1, max_size=8).filter(lambda s: s == s.strip()),
        st.tuples(MESSY, st.sampled_from(["", "m-1"])),
        max_size=6,
    ),
    st.sampled_from(["csv", "tsv", "parquet"]),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, tuple[str, str]], kind: str
) -> None:
    raw = {
        case: Report(text=text, model=model, prompt_digest="a" * 64 if model else "")
        for case, (text, model) in rows.items()
        if not model or any(c.isalnum() for c in text)
    }
    reports = dict(clean_reports(ReportTable(reports=raw))[0])
    uri = str(tmp_path_factory.mktemp("r") / f"reports.{kind}")
    write_reports(uri, reports)
    again = read_reports(uri)
    assert dict(again) == reports
    assert again.digest == ReportTable(reports=reports).digest


def test_digest_knows_content_and_not_order() -> None:
    one, two = Report(text="one"), Report(text="two")
    digest = ReportTable(reports={"a": one, "b": two}).digest
    assert digest == ReportTable(reports={"b": two, "a": one}).digest
    others = [
        {"a": two, "b": one},
        {"a": one},
        {"a": one, "b": Report(text="two", model="m", prompt_digest="0" * 8)},
        {"a": Report(text="one "), "b": two},
    ]
    assert digest not in {ReportTable(reports=reports).digest for reports in others}


def test_only_keeps_the_cases_asked_for() -> None:
    table = ReportTable(reports={"b": Report(text="x"), "a": Report(text="y")}, empty=("c", "d"))
    part = table.only(["a", "d", "unknown"])
    assert (list(part), part.empty) == (["a"], ("d",))


# --- report text is never shown -----------------------------------------------------------------


def test_text_is_in_no_repr() -> None:
    report = Report(text=SECRET)
    shown = [repr(report), str(ReportTable(reports={"a": report})), repr(run_steps(SECRET))]
    assert not any("lobular" in text for text in shown)


@pytest.mark.parametrize(
    "content",
    [
        f"case_id,text\na,fine\nb,{SECRET}, and more\n".encode(),
        f"case_id,text\na,fine\nb,{SECRET} \xe9\n".encode("latin-1"),
        f"case_id,text\na,fine\nb,{SECRET}. It's {SECRET}. \xe9\n".encode("latin-1"),
        f"case_id,text\na,{SECRET}\na,{SECRET}\n".encode(),
        f"case_id,text,model\na,{SECRET},m\n".encode(),
        f'case_id,text\na,fine\nb,"{SECRET}\n'.encode(),
    ],
)
def test_text_is_in_no_message(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(TableError) as caught:
        read_reports(str(path))
    message = str(caught.value)
    assert not any(word in message + caplog.text for word in SECRET.split() if len(word) > 4)
    assert "r.csv" in message


def test_missing_column_names_what_is_there(tmp_path: Path) -> None:
    uri = write_csv(tmp_path / "r.csv", case=["a"], report=["b"])
    with pytest.raises(TableError, match="expected a column case_id, got case, report"):
        read_reports(uri)
