"""The doctor: every check has a row and a way out, and slides are previewed with their problems."""

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mstar.cli import doctor, doctor_checks
from mstar.cli.doctor import DoctorConfig, preview_slide, run_checks
from mstar.cli.doctor_checks import CHECKS, Check, Place, run_check
from mstar.errors import ConfigError
from mstar.schema import SlideRef


class NoCache:
    """Stages nothing: the slides are local."""

    @contextmanager
    def stage(self, uri: str) -> Iterator[Path]:
        yield Path(uri)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A machine without object store or tracking server."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Place(out=str(tmp_path / "not yet" / "there"), cache=str(tmp_path), s3=None)


def refused_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_this_machine_passes_every_check_and_nothing_is_written(place: Place) -> None:
    checks = run_checks(place)
    assert [check.name for check in checks] == [*CHECKS, "encoder"]
    assert [check for check in checks if check.status == "fail"] == []
    assert all(check.way_out for check in checks if check.status != "ok")
    assert not Path(place.out).parent.exists()


def test_a_check_that_crashes_is_a_failed_row(place: Place) -> None:
    def crash(place: Place) -> Check:
        raise ZeroDivisionError("oh")

    check = run_check("python", crash, place)
    assert (check.name, check.status) == ("python", "fail")
    assert "ZeroDivisionError: oh" in check.found


@pytest.mark.parametrize("name", ["torch", "gpu", "ray", "openslide", "libvips"])
def test_a_library_that_does_not_load_is_reported_with_a_way_out(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(code: str) -> tuple[bool, str]:
        return False, "OSError: libx.so.1: cannot open shared object file"

    monkeypatch.setattr(doctor_checks, "probe", broken)
    check = CHECKS[name](place)
    assert check.status == ("warn" if name == "libvips" else "fail")
    assert "libx.so.1" in check.found
    assert check.way_out


def test_a_probe_survives_a_crash_of_what_it_probes() -> None:
    assert doctor_checks.probe("print(1); print('two words')") == (True, "two words")
    fine, said = doctor_checks.probe("import os; os.kill(os.getpid(), 11)")
    assert (fine, said) == (False, "killed by signal 11")
    fine, said = doctor_checks.probe("raise ValueError('not at http://user:secret@host/')")
    assert (fine, said) == (False, "ValueError: not at http://host/")


def test_a_torch_other_than_the_tested_one_is_pointed_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "probe", lambda code: (True, "timm 1"))
    monkeypatch.setattr(
        doctor_checks, "version", {"torch": "2.0.0+cpu", "torchvision": "0.28.0"}.get
    )
    check = CHECKS["torch"](place)
    assert check.status == "warn"
    assert "tested with torch 2.13.0 and torchvision 0.28.0" in check.way_out


def test_unreachable_servers_are_found_out_within_seconds(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", refused_address())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refused_address())
    began_s = time.monotonic()
    s3, mlflow = CHECKS["s3"](place), CHECKS["mlflow"](place)
    assert time.monotonic() - began_s < 40
    assert s3.status == "fail"
    assert "AWS_ENDPOINT_URL" in s3.way_out
    assert mlflow.status == "warn"
    assert "MLFLOW_TRACKING_URI" in mlflow.way_out


def test_an_object_store_that_answers_passes(
    place: Place, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    check = CHECKS["s3"](place)
    assert check.status == "ok", check
    absent = CHECKS["s3"](Place(out=place.out, cache=place.cache, s3="s3://no-such-bucket/x"))
    assert absent.status == "fail"


def test_few_file_descriptors_are_pointed_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 1_048_576))
    check = CHECKS["open files"](place)
    assert check.status == "warn"
    assert check.way_out == "ulimit -n 65536"


def test_a_full_disk_is_pointed_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor_checks, "MIN_FREE_BYTES", dict.fromkeys(("out", "cache"), 1 << 60) | {"temporary": 0}
    )
    check = CHECKS["disk"](place)
    assert check.status == "warn"
    assert "out: " in check.way_out
    assert "temporary" not in check.way_out


def preview(path: Path, mpp: float | None = None) -> doctor.SlidePreview:
    """The preview of one local slide."""
    ref = SlideRef(slide_id=path.stem, uri=str(path), mpp=mpp)
    return preview_slide(ref, NoCache())  # type: ignore[arg-type]


def test_the_real_slide_is_previewed(real_slide: Path) -> None:
    found = preview(real_slide)
    assert (found.width_l0, found.height_l0) == (2220, 2967)
    assert found.mpp == pytest.approx(0.499)
    assert found.compression == "jpeg"
    assert found.reader
    assert found.problem == ""


def test_a_slide_without_mpp_is_a_problem_unless_it_is_stated(
    slide_factory: Callable[..., Path],
) -> None:
    path = slide_factory(mpp=None, objective=None)
    found = preview(path)
    assert "--slide-mpp" in found.problem
    stated = preview(path, mpp=0.25)
    assert (stated.mpp, stated.mpp_source, stated.problem) == (0.25, "stated", "")


@pytest.mark.parametrize("content", [b"", b"not an image", b"II*\0\x08\0\0\0"])
def test_a_broken_file_is_a_problem_of_that_slide(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.svs"
    path.write_bytes(content)
    found = preview(path)
    assert str(path) in found.problem


def test_the_whole_command(
    place: Place,
    real_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = Check(name="python", status="warn", found="[3.11]", way_out="none")
    monkeypatch.setattr(doctor, "CHECKS", {"python": lambda place: row})
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "good one.svs").symlink_to(real_slide)
    (folder / "bad.svs").write_bytes(b"")
    config = DoctorConfig(slides=str(folder), out=place.out, cache_dir=place.cache, json=True)
    assert doctor.run(config) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["check"]["found"] == "[3.11]"
    by_id = {row["slide"]["slide_id"]: row["slide"] for row in rows[1:]}
    assert by_id["bad"]["problem"]
    assert by_id["good one"]["mpp"] == pytest.approx(0.499)

    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "path,slide_id,mpp\nslides/good one.svs,../up,\nslides/good one.svs,b,0.25\n"
    )
    assert doctor.run(replace(config, slides=str(manifest))) == 1
    _, up, stated = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert up["slide"]["problem"]
    assert (stated["slide"]["mpp"], stated["slide"]["mpp_source"]) == (0.25, "stated")

    (folder / "bad.svs").unlink()
    assert doctor.run(DoctorConfig(slides=str(folder), out=place.out, cache_dir=place.cache)) == 0
    text = capsys.readouterr().out
    assert "[3.11]" in text
    assert "2220×2967" in text
    assert "slides: 1, with a problem: 0" in text


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--limit"):
        DoctorConfig(limit=-1)
