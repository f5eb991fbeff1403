"""README's section 'On a cluster', followed to the letter on a real `ray start --head`."""

import shlex
from pathlib import Path

import pytest

from mstar.data.reports import read_reports
from mstar.pretrain.small_text_encoder import write_small_text_encoder
from support.ray_head import BIN, ROOT, Head, running_head


def commands() -> list[str]:
    """The lines of the section's second block: from nothing to a results page."""
    section = (ROOT / "README.md").read_text().partition("\n## On a cluster\n")[2]
    block = section.partition("\n## ")[0].split("```")[3]
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


def test_the_section_names_every_job() -> None:
    lines = commands()
    assert all(line.startswith("mstar ") for line in lines)
    jobs = ("grid", "embed", "stage1", "targets", "stage2", "sweep", "ablate")
    for job in jobs:
        assert any(line.startswith(f"mstar submit {job} ") for line in lines), job
        assert (ROOT / "jobs" / f"{job}.py").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_the_section_works_as_it_stands(tmp_path: Path) -> None:
    """Each command ends with 0; the shared folder is the only thing that is put in its place."""
    with running_head(tmp_path / "head.log", cpus=2) as head:
        for line in commands():
            if "--text" in line:
                write_text_encoder(tmp_path)
            run(head, line.replace("/share/", f"{tmp_path}/"))
    assert list((tmp_path / "F").glob("*.h5"))
    assert (tmp_path / "E" / "encoder.safetensors").exists()
    assert list((tmp_path / "S").rglob("*.parquet"))
    assert (tmp_path / "R" / "index.html").exists()
    assert not (tmp_path / "B").exists(), "a dry run writes nothing"


def run(head: Head, line: str) -> None:
    program, *words = shlex.split(line)
    code, output = head.call(str(BIN / program), *words, timeout_s=1800)
    assert code == 0, f"{line}\n{output}"


def write_text_encoder(share: Path) -> None:
    """Stands in for `/share/bert`."""
    reports = read_reports(str(share / "C" / "reports.csv"))
    write_small_text_encoder(share / "bert", [report.text for report in reports.values()])
