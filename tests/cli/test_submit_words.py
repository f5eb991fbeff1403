"""What `mstar submit` decides before a cluster is asked: words, paths, variables, places, codes."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

import mstar
from mstar.cli import submit, submit_cluster, submit_package
from mstar.cli.main import main
from mstar.cli.submit_config import SubmitConfig
from mstar.errors import ConfigError, WorkerError
from mstar.training import code_version
from mstar.training.code_version import SUBMITTED_CODE, CodeVersion, source_digest, this_code
from mstar.training.exit_codes import ExitCode

EMBED = ["embed", "debug", "--slides", "s3://b/slides", "--out", "s3://b/F"]


@pytest.mark.parametrize(
    "own",
    [
        [],
        ["--no-wait"],
        ["--address", "http://h:1", "--ship-code"],
        ["--credentials", "A", "B"],
        ["--credentials", "A", "--no-wait"],
        ["--address=http://embed:1"],
    ],
)
def test_submits_flags_end_where_the_job_begins(own: list[str]) -> None:
    assert submit.split_words([*own, *EMBED]) == (own, EMBED)


def test_the_jobs_words_go_as_they_were_typed() -> None:
    words = submit.check_job(["cohort", "split", "--preset", "mstar", "/share/C"])
    assert words.job == "cohort split"
    assert words.words == ("cohort", "split", "--preset", "mstar", "/share/C")
    line = submit_package.entrypoint(SubmitConfig(python="py"), ["embed", "--slides", "a b;c"])
    assert line == "exec py -P -m mstar.cli.main embed --slides 'a b;c'"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embde", *EMBED[1:]], "did you mean 'embed'"),
        ([*EMBED, "--slidez", "x"], "--slides"),
        (["embed", "tcga_unii", *EMBED[2:]], "tcga_uni"),
        ([*EMBED, "--no-wait"], "before the job's name"),
        ([*EMBED[:-1], "F"], "absolute"),
        (["submit", *EMBED], "run here"),
        (["demo"], "run here"),
    ],
)
def test_a_wrong_line_is_refused_here(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--address", "http://127.0.0.1:9", *words]) == ExitCode.USAGE
    assert says in capsys.readouterr().err


def test_a_folder_of_this_shell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its field, a list of stores included; a name that only looks like one is not."""
    (tmp_path / "F").mkdir()
    (tmp_path / "vit_tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    config = {"encoder": "vit_tiny", "features": ["uni=F"], "out": "/o"}
    with pytest.raises(ConfigError, match=r"--features F"):
        submit_package.check_paths(config)
    submit_package.check_paths(config | {"features": ["uni=/share/F", "s3://b/F"]})


def test_only_addresses_are_sent_with_their_values() -> None:
    environment = {
        "AWS_ENDPOINT_URL": "http://s3:9",
        "AWS_ACCESS_KEY_ID": "id-value",
        "AWS_SECRET_ACCESS_KEY": "secret-value",
        "HF_TOKEN": "token-value",
        "RAY_AUTH_TOKEN": "ray-value",
        "MY_SETTING": "7",
    }
    config = SubmitConfig(credentials=("AWS_SECRET_ACCESS_KEY", "HF_TOKEN"), env=("MY_SETTING",))
    sent = submit_package.variables(config, environment)
    assert sent["AWS_ENDPOINT_URL"] == "http://s3:9"
    assert sent["MY_SETTING"] == "7"
    assert sent["MSTAR_CREDENTIALS"] == "AWS_SECRET_ACCESS_KEY,HF_TOKEN"
    assert not any("-value" in value for value in sent.values())
    assert CodeVersion.from_json(sent[SUBMITTED_CODE]) == this_code()


def test_a_secret_is_not_sent_by_mistake() -> None:
    with pytest.raises(ConfigError, match="--credentials HF_TOKEN"):
        SubmitConfig(env=("HF_TOKEN",))
    with pytest.raises(ConfigError, match="never its value"):
        SubmitConfig(credentials=("AWS_SECRET_ACCESS_KEY=abc",))
    address = {"MLFLOW_TRACKING_URI": "https://me:hidden@mlflow"}
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME") as caught:
        submit_package.variables(SubmitConfig(), address)
    assert "hidden" not in str(caught.value)


def test_a_shipped_package_is_the_same_code(tmp_path: Path) -> None:
    """Its digest is that of the checkout, its commit is written into it, its spaces are in it."""
    package = submit_package.copy_package(tmp_path)
    assert source_digest(package) == this_code().source
    stamp = (package / code_version.STAMP).read_text().split()
    assert stamp == [this_code().commit, *(["modified"] if this_code().modified else [])]
    assert list((package / "tune_spaces").glob("*.py"))
    assert not list(package.rglob("__pycache__"))


def test_an_edit_is_other_code(tmp_path: Path) -> None:
    copy = tmp_path / "mstar"
    shutil.copytree(Path(mstar.__file__).parent, copy)
    (copy / "errors.py").write_text("# edited\n")
    assert source_digest(copy) != this_code().source


def test_a_job_refuses_to_run_as_other_code_than_was_submitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = json.loads(this_code().to_json()) | {"source": "0" * 12}
    monkeypatch.delenv(code_version.CODE_CHECK, raising=False)
    monkeypatch.setenv(SUBMITTED_CODE, json.dumps(other))
    assert main(["tasks", "list"]) == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "000000000000" in error
    assert "--ship-code" in error
    monkeypatch.setenv(code_version.DRIVER_CODE, json.dumps(other))
    with pytest.raises(WorkerError, match="other code than the driver"):
        code_version.refuse_other_code()
    monkeypatch.setenv(code_version.CODE_CHECK, "warn")
    code_version.refuse_other_code()


@dataclass
class Node:
    """What Ray's state API says of a node."""

    node_id: str
    is_head_node: bool = False
    state: str = "ALIVE"
    labels: dict[str, str] = field(default_factory=dict)


HEAD, ON_DEMAND = Node("h", is_head_node=True), Node("w")
SPOT, DEAD = Node("s", labels={submit_cluster.MARKET: "spot"}), Node("d", state="DEAD")


@pytest.mark.parametrize(
    ("driver", "nodes", "labels"),
    [
        ("auto", [HEAD], {}),
        ("auto", [HEAD, DEAD], {}),
        ("auto", [HEAD, SPOT], {}),
        ("auto", [HEAD, SPOT, ON_DEMAND], {"ray.io/node-id": "!h", "ray.io/market-type": "!spot"}),
        ("worker", [HEAD, SPOT], {"ray.io/node-id": "!h"}),
    ],
)
def test_the_driver_goes_where_it_can_stay(
    driver: str, nodes: list[Node], labels: dict[str, str]
) -> None:
    assert submit_cluster.choose_place(driver, nodes).labels == labels


def test_a_worker_that_is_not_there_is_not_waited_for() -> None:
    with pytest.raises(ConfigError, match="no node besides the head"):
        submit_cluster.choose_place("worker", [HEAD])


@pytest.mark.parametrize(
    ("status", "driver_code", "ours"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 130, 130),
        ("FAILED", -9, 1),
        ("FAILED", 0, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, driver_code: int | None, ours: int) -> None:
    from ray.job_submission import JobStatus

    details = SimpleNamespace(status=JobStatus(status), driver_exit_code=driver_code)
    assert submit_cluster.ended_as(details) == ours


def test_a_log_is_shown_once_though_the_connection_breaks() -> None:
    """Each new connection starts from the beginning of the log."""
    log, seen = ["embed: 1\n", "embed: 2\n", "embed: 3\n"], []

    class Client:
        calls = 0

        async def tail_job_logs(self, submission_id: str):  # type: ignore[no-untyped-def]
            Client.calls += 1
            for line in log[: Client.calls + 1]:
                yield line
            if Client.calls == 1:
                raise RuntimeError("WebSocket closed")

        def get_job_info(self, submission_id: str) -> SimpleNamespace:
            from ray.job_submission import JobStatus

            return SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0)

    assert submit_cluster.follow(Client(), "x", say=seen.append) == 0  # type: ignore[arg-type]
    assert "".join(seen) == "".join(log)
