"""Slides and features in object storage: a real S3 server, several nodes, faults on the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mstar.embed import job
from mstar.storage.objects import list_files, put_file, read_bytes
from mstar.training.exit_codes import ExitCode
from support.cohorts import output_digests, quick_embed, write_cohort
from support.s3 import CountingProxy, Fault, make_bucket, s3_environment

pytestmark = pytest.mark.ray

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), num_slides=6, quality=95)


@pytest.fixture(scope="module")
def bucket(s3_server: str, slides: Path) -> str:
    bucket = make_bucket("cohort")
    for path in slides.iterdir():
        put_file(path, f"{bucket}/slides/{path.name}")
    return bucket


def download(root: str, folder: Path) -> None:
    for file in list_files(root, suffix=".h5"):
        target = folder / file.rel
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_bytes(file.uri))


@pytest.mark.slow
def test_two_nodes_fetch_every_slide_once(
    s3_server: str, bucket: str, slides: Path, tmp_path: Path, local_ray: None
) -> None:
    """Three actors on two nodes: bytes served are at most 1.1 × the cohort's size."""
    size = sum(path.stat().st_size for path in slides.iterdir())
    out = f"{bucket}/two-nodes"
    with CountingProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        environment = os.environ | {"PYTHONPATH": str(TESTS)}
        command = [sys.executable, "-m", "support.two_nodes"]
        command += [f"{bucket}/slides", out, str(tmp_path)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        served = proxy.bytes_served
    assert ended.returncode == ExitCode.COMPLETE, ended.stdout + ended.stderr
    assert "caches used: 2" in ended.stdout
    assert served <= 1.1 * size, f"{served:,} bytes served for a cohort of {size:,}"
    # The same bytes as from disk to disk.
    assert job.run(quick_embed(slides, tmp_path / "local")) == ExitCode.COMPLETE
    download(out, tmp_path / "fetched")
    assert output_digests(tmp_path / "fetched") == output_digests(tmp_path / "local")


def test_passing_storage_errors_are_ridden_out(
    s3_server: str, bucket: str, slides: Path, tmp_path: Path
) -> None:
    """503s, a cut connection and a lost answer while slides are fetched and features written."""
    out = f"{bucket}/faults"
    command = [sys.executable, "-m", "mstar.cli.main", "embed", "debug", "--slides"]
    command += [f"{bucket}/slides", "--out", out, "--no-tracking"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    with CountingProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        proxy.inject(Fault(kind="503", method="GET", path_part="slide", times=2))
        proxy.inject(Fault(kind="cut", method="GET", path_part="slide", times=1))
        proxy.inject(Fault(kind="503", method="PUT", path_part=".h5", times=2))
        proxy.inject(Fault(kind="lost", method="PUT", path_part=".h5", times=1))
        ended = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert ended.returncode == ExitCode.COMPLETE, ended.stdout + ended.stderr
    assert len(list(list_files(out, suffix=".h5"))) == len(list(slides.iterdir()))
