"""Secrets planted in the environment and in addresses come out nowhere: grep all that is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mstar.cli.main import main
from mstar.training.credentials import is_secret_name, missing_credentials, redact, refuse_secrets
from mstar.training.exit_codes import ExitCode
from mstar.training.tracking import start_tracking
from support.cohorts import write_cohort

# Put together here, so that a search of the repository for them finds nothing.
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted" + "+s3/secret=0451",
    "AWS_SESSION_TOKEN": "planted" + "-session-0452",
    "HF_TOKEN": "planted" + "-hub-0453",
    "MLFLOW_TRACKING_PASSWORD": "planted" + "-mlflow-0454",
    "RAY_AUTH_TOKEN": "planted" + "-ray-0455",
}
IN_ADDRESS = "planted" + "-in-address-0456"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return PLANTED


def holding(folder: Path, texts: list[str]) -> list[str]:
    """Files that hold one of the texts, as it is, or as JSON and addresses write it."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [f"{path}: {text}" for text in texts if text.encode() in content]
    return found


def test_a_tracked_run_holds_no_secret(planted: dict[str, str], tmp_path: Path) -> None:
    """Params, tags, texts, models, runs below, the spool and its log: all kinds of records."""
    everything = [*planted.values(), IN_ADDRESS]
    address = f"s3://user:{IN_ADDRESS}@bucket/x"
    config = {"slides": address, "note": f"keys are {' '.join(planted.values())}", "lr": 1.0}
    tracker = start_tracking("job", config, out=str(tmp_path), finish_wait_s=120)
    tracker.log_params({"late": planted["HF_TOKEN"]})
    tracker.set_tags({"where": address, "token": planted["RAY_AUTH_TOKEN"]})
    tracker.log_text(f"failed at {address}: {planted['AWS_SECRET_ACCESS_KEY']}", "summary.txt")
    tracker.log_run(
        "child",
        name="trial",
        status="FINISHED",
        params={"a": planted["HF_TOKEN"]},
        tags={"b": address},
    )
    tracker.log_model("model", address, tags={"c": planted["HF_TOKEN"]}, description="none")
    before = holding(tmp_path, everything)
    said = tracker.finish()
    assert said.startswith("run "), said
    assert "in MLflow at sqlite" in said, said
    assert before == holding(tmp_path, everything) == []
    assert holding(tmp_path, ["$HF_TOKEN", "s3://bucket/x"]), "the search finds what is there"


def test_a_server_with_a_password_is_reached_and_not_written_down(
    planted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker process has the password from its environment; here nobody answers it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{IN_ADDRESS}@127.0.0.1:9")
    tracker = start_tracking("job", {"a": 1}, out=str(tmp_path), finish_wait_s=0.5)
    said = tracker.finish()
    assert "http://127.0.0.1:9" in (tmp_path / "tracking").rglob("run.json").__next__().read_text()
    assert IN_ADDRESS not in said
    assert holding(tmp_path, [*planted.values(), IN_ADDRESS]) == []


@pytest.mark.parametrize(
    "argument",
    [
        f"s3://user:{IN_ADDRESS}@bucket/slides",
        f"--slides=s3://user:{IN_ADDRESS}@bucket/slides",
        f"https://bucket/x?X-Amz-Signature={IN_ADDRESS}",
        PLANTED["HF_TOKEN"],
    ],
)
def test_a_secret_on_the_command_line_starts_nothing(
    argument: str, planted: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "F"
    code = main(["embed", "debug", "--slides", argument, "--out", str(out)])
    said = capsys.readouterr()
    assert code == ExitCode.USAGE
    assert "environment" in said.err
    assert not out.exists()
    assert not [text for text in (*planted.values(), IN_ADDRESS) if text in said.err + said.out]


def test_a_command_line_without_secrets_passes(planted: dict[str, str]) -> None:
    refuse_secrets(["embed", "--slides", "s3://bucket/a@b?x=1", "--encoder", "uni"])


def test_which_names_are_secret() -> None:
    assert all(map(is_secret_name, [*PLANTED, "OPENAI_API_KEY", "DB_PASSWORD"]))
    places = ["AWS_SHARED_CREDENTIALS_FILE", "RAY_AUTH_TOKEN_PATH", "MSTAR_CREDENTIALS", "HOME"]
    assert not any(map(is_secret_name, [*places, "RAY_AUTH_MODE"]))


def test_redacted_text_stays_readable(planted: dict[str, str]) -> None:
    assert redact(f"a {planted['HF_TOKEN']} b") == "a $HF_TOKEN b"
    assert redact("http://u:p@h/x?token=abc&n=1") == "http://h/x?token=…&n=1"
    assert redact("s3://bucket/a@b") == "s3://bucket/a@b"


def test_promised_credentials_are_looked_for() -> None:
    environment = {"MSTAR_CREDENTIALS": "A,B", "A": "x", "B": ""}
    assert missing_credentials(environment) == ("B",)
    assert missing_credentials({}) == ()


@pytest.mark.slow
@pytest.mark.ray
def test_a_whole_job_leaves_no_secret(tmp_path: Path) -> None:
    """`mstar embed`, tracked, one slide broken: database, artifacts, ledger, what it printed."""
    slides, out = write_cohort(tmp_path / "slides", num_slides=2), tmp_path / "F"
    (slides / "broken.svs").write_bytes(b"no slide")
    command = [sys.executable, "-m", "mstar.cli.main", "embed", "debug"]
    command += ["--slides", str(slides), "--out", str(out), "--max-failures", "1"]
    environment = os.environ | PLANTED | {"RAY_AUTH_MODE": "disabled"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    assert (out / "mlflow.db").exists()
    assert list((out / "mlartifacts").rglob("failures.tsv"))
    assert not [value for value in PLANTED.values() if value in ended.stdout + ended.stderr]
    assert holding(out, list(PLANTED.values())) == []
