"""Jobs on a real `ray start --head`, token authentication on: sent, stopped, gone on with."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mstar
from mstar.features.files import read_features
from support.cohorts import leftovers, write_cohort
from support.ray_head import MSTAR, RAY, ROOT, Head, running_head, second_node

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SECRET = "planted-" + "node-secret-0451"
FIRST, SECOND = "first-run", "second-run"
NUM_SLIDES = 40  # more than are done while a client starts


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    log = tmp_path_factory.mktemp("head") / "head.log"
    with running_head(log, AWS_SECRET_ACCESS_KEY=SECRET) as running:
        yield running


def wait_for(what: Callable[[], bool], within_s: float = 400) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def features(out: Path) -> dict[str, int]:
    """Name → when it was written, of every finished file."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}


def test_stopped_half_way_and_submitted_again(head: Head, tmp_path: Path) -> None:
    """`ray job submit jobs/embed.py`, `ray job stop`, `mstar submit embed`: each slide done once.

    The second submission follows its log in JSON, checks the code and the credentials on the node,
    and neither the job API nor any log of Ray holds the secret that the node has.
    """
    slides, out = write_cohort(tmp_path / "slides", num_slides=NUM_SLIDES), tmp_path / "F"
    flags = ["debug", "--slides", str(slides), "--out", str(out), "--bundle-batches", "1"]
    submit = [RAY, "job", "submit", "--no-wait", "--submission-id", FIRST]
    submit += ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}']
    submit += ["--working-dir", str(ROOT / "jobs"), "--", "python", "embed.py", *flags]
    code, output = head.call(*submit)
    assert code == 0, output

    wait_for(lambda: len(features(out)) >= 1)
    assert head.call(RAY, "job", "stop", FIRST)[0] == 0
    _, log = head.call(RAY, "job", "logs", FIRST)
    assert head.job(FIRST)["status"] == "STOPPED", log
    assert "interrupted" in log
    half = features(out)
    assert 1 <= len(half) < NUM_SLIDES

    submit = [MSTAR, "submit", "--submission-id", SECOND, "--credentials", "AWS_SECRET_ACCESS_KEY"]
    code, output = head.call(*submit, "embed", *flags, MSTAR_LOG_FORMAT="json")
    assert code == 0, output
    whole = features(out)
    assert len(whole) == NUM_SLIDES
    assert {name: whole[name] for name in half} == half, "what was done is left as it is"
    for path in out.glob("*.h5"):
        assert len(read_features(path, check="full").features) > 0
    assert leftovers(out) == []

    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert {line["job"] for line in lines} == {"embed"}
    (done,) = [line for line in lines if line.get("event") == "progress"][-1:]
    assert done["slides_done"] == NUM_SLIDES
    messages = "\n".join(line["message"] for line in lines)
    assert f"driver: mstar {mstar.__version__}" in messages
    assert ", on 1 nodes" in messages
    assert f"{head.address}/#/jobs/{SECOND}" in output

    shown = json.dumps(head.job(SECOND))
    assert "AWS_SECRET_ACCESS_KEY" in shown  # the name
    assert SECRET not in shown + output
    assert head.grep(SECRET) == []
    workers = "\n".join(path.read_text() for path in head.folder.rglob("worker-*.err"))
    assert f"worker: mstar {mstar.__version__}" in workers


def test_what_the_cluster_refuses_is_an_exit_code_with_a_way_out(head: Head) -> None:
    stranger = secrets.token_hex(32)
    code, output = head.call(MSTAR, "submit", "tasks", "list", RAY_AUTH_TOKEN=stranger)
    assert code == 2
    assert "RAY_AUTH_TOKEN" in output
    assert stranger not in output
    submit = [MSTAR, "submit", "--credentials", "NOBODY_HAS_THIS", "tasks", "list"]
    code, output = head.call(*submit)
    assert code == 1
    assert "no NOBODY_HAS_THIS in its environment" in output


def test_the_code_is_sent_where_another_one_is_installed(tmp_path: Path) -> None:
    """The cluster has an edited copy: refused, and with --ship-code the submitter's runs."""
    installed = tmp_path / "installed"
    shutil.copytree(Path(mstar.__file__).parent, installed / "mstar")
    with (installed / "mstar" / "errors.py").open("a") as file:
        file.write("\n# edited\n")
    with running_head(tmp_path / "head.log", PYTHONPATH=str(installed)) as head:
        code, output = head.call(MSTAR, "submit", "tasks", "list")
        assert code == 1
        assert "other code than was submitted" in output
        code, output = head.call(MSTAR, "submit", "--ship-code", "tasks", "list")
        assert code == 0, output
        slides = write_cohort(tmp_path / "slides", num_slides=1)
        words = ["grid", "--slides", str(slides), "--out", str(tmp_path / "G"), "--no-tracking"]
        code, output = head.call(MSTAR, "submit", "--ship-code", *words)
        assert code == 0, output
        assert ", on 1 nodes" in output


def test_the_driver_leaves_the_head_to_itself(tmp_path: Path) -> None:
    """On two nodes the driver runs on the other one, unless told to stay."""
    with (
        running_head(tmp_path / "head.log", cpus=0) as head,
        second_node(head, tmp_path / "node.log"),
    ):
        wait_for(lambda: _nodes(head) == 2)
        places = {}
        for driver in ("auto", "head"):
            name = f"on-{driver}"
            submit = [MSTAR, "submit", "--driver", driver, "--submission-id", name]
            code, output = head.call(*submit, "tasks", "list")
            assert code == 0, output
            places[driver] = head.job(name)["driver_node_id"]
    assert places["auto"] != places["head"]


def _nodes(head: Head) -> int:
    _, output = head.call(RAY, "list", "nodes", "--address", head.address, "--format", "json")
    return output.count('"ALIVE"')


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it(head: Head, tmp_path: Path) -> None:
    slides = write_cohort(tmp_path / "slides", num_slides=NUM_SLIDES)
    submit = [MSTAR, "submit", "--submission-id", "left", "embed", "debug", "--no-tracking"]
    client = subprocess.Popen(
        [*submit, "--slides", str(slides), "--out", str(tmp_path / "F")],
        env=head.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert client.stdout is not None
    wait_for(lambda: "driver: mstar" in client.stdout.readline())
    os.kill(client.pid, 2)
    output = client.communicate(timeout=60)[0]
    assert client.returncode == 130
    assert "ray job stop left" in output
    assert head.job("left")["status"] == "RUNNING"
    assert head.call(RAY, "job", "stop", "left")[0] == 0
