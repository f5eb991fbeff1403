"""What `mstar doctor` checks: each check looks at one thing and tells the way out.

The table `CHECKS` is all there is. A check that crashes is a failed check, never a traceback.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mstar.training.credentials import redact
from mstar.training.run_facts import version
from mstar.training.tracking_places import state_folder, tracking_uri

PROBE_TIMEOUT_S = 90
MIN_FREE_BYTES = {"out": 20 << 30, "cache": 50 << 30, "temporary": 10 << 30}
MIN_OPEN_FILES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What this machine is to be checked for.

    out: where a job will write, local or s3://.
    cache: folder of the slide cache.
    s3: address to try, None when no object store is meant.
    encoder: whose weights to look for, empty for none.
    """

    out: str
    cache: str
    s3: str | None
    encoder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table.

    way_out: what to do about it, empty when all is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    way_out: str = ""


def check_python(place: Place) -> Check:
    """Python 3.11 or 3.12."""
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    way_out = "" if good else "make a virtual environment with Python 3.11 or 3.12"
    return Check(name="python", status="ok" if good else "fail", found=found, way_out=way_out)


def check_torch(place: Place) -> Check:
    """Torch, torchvision and timm import together, in a fresh process as a worker is one."""
    pair = ", ".join(f"{name} {version(name) or 'missing'}" for name in ("torch", "torchvision"))
    code = (
        "from mstar.models.torchvision_ops import declare_missing_ops, import_timm\n"
        "declared = declare_missing_ops()\n"
        "note = ', operators declared by us (CPU torch)' if declared else ''\n"
        "print('timm ' + import_timm().__version__ + note)"
    )
    fine, said = probe(code)
    found = f"{pair}{', ' if fine else ': '}{said}"
    if not fine:
        way_out = "install the pair of requirements.lock: pip install -r requirements.lock"
        return Check(name="torch", status="fail", found=found, way_out=way_out)
    tested = {name: pinned(name) for name in ("torch", "torchvision")}
    if any(wanted and version(name).split("+")[0] != wanted for name, wanted in tested.items()):
        way_out = f"tested with torch {tested['torch']} and torchvision {tested['torchvision']}"
        return Check(name="torch", status="warn", found=found, way_out=way_out)
    return Check(name="torch", status="ok", found=found)


def check_gpu(place: Place) -> Check:
    """CUDA devices that torch can use; none is fine, but slow."""
    code = (
        "import torch; c = torch.cuda; n = c.device_count() if c.is_available() else 0;"
        "x = [torch.ones(2, device=f'cuda:{i}').sum().item() for i in range(n)];"
        "print('; '.join(f'{c.get_device_name(i)}, '"
        "f'{c.get_device_properties(i).total_memory / 2**30:.0f} GiB' for i in range(n)))"
    )
    fine, said = probe(code)
    if not fine:
        way_out = "check the driver with nvidia-smi; it must support this torch's CUDA"
        return Check(name="gpu", status="fail", found=said, way_out=way_out)
    if said:
        return Check(name="gpu", status="ok", found=said)
    if shutil.which("nvidia-smi"):
        way_out = "the driver is there but torch does not see it: install torch with CUDA"
        return Check(name="gpu", status="warn", found="none that torch can use", way_out=way_out)
    way_out = "encoders run on the CPU (--device cpu), for tests and small cohorts"
    return Check(name="gpu", status="warn", found="none", way_out=way_out)


def check_ray(place: Place) -> Check:
    """Ray is installed at the version the platform is tested with, and imports."""
    fine, said = probe("import ray, ray.data; print(ray.__version__)")
    if not fine:
        way_out = "pip install -r requirements.lock"
        return Check(name="ray", status="fail", found=said, way_out=way_out)
    wanted = pinned("ray")
    if wanted and said != wanted:
        way_out = f"tested with ray {wanted}; driver and cluster must have the same version"
        return Check(name="ray", status="warn", found=said, way_out=way_out)
    address = os.environ.get("RAY_ADDRESS")
    return Check(name="ray", status="ok", found=f"{said}, {address or 'started per job'}")


def check_openslide(place: Place) -> Check:
    """The OpenSlide library loads."""
    code = "import openslide as o; print(o.__version__, 'library', o.__library_version__)"
    fine, said = probe(code)
    way_out = "" if fine else "pip install openslide-python openslide-bin"
    return Check(name="openslide", status="ok" if fine else "fail", found=said, way_out=way_out)


def check_vips(place: Place) -> Check:
    """The libvips library loads; without it TIFF-family slides are read more slowly."""
    code = "import pyvips as v; print(v.__version__, 'library', *map(v.version, range(3)))"
    fine, said = probe(code)
    way_out = "" if fine else "pip install pyvips pyvips-binary; until then OpenSlide reads all"
    return Check(name="libvips", status="ok" if fine else "warn", found=said, way_out=way_out)


def check_s3(place: Place) -> Check:
    """The object store answers, with the keys of the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if place.s3 is None and not endpoint:
        return Check(name="s3", status="ok", found="not asked for (--s3 s3://bucket/folder)")
    address = place.s3 or "s3://"
    code = (
        "import itertools, os, s3fs; fs = s3fs.S3FileSystem("
        "endpoint_url=os.environ.get('AWS_ENDPOINT_URL'), "
        "config_kwargs={'connect_timeout': 5, 'read_timeout': 20, 'retries': {'max_attempts': 1}});"
        f"found = fs.ls({address.removeprefix('s3://')!r}); print(len(found), 'entries')"
    )
    fine, said = probe(code)
    where = f"{address} at {redact(endpoint) or 'AWS'}"
    if fine:
        return Check(name="s3", status="ok", found=f"{where}: {said}")
    way_out = "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket"
    return Check(name="s3", status="fail", found=f"{where}: {said}", way_out=way_out)


def check_mlflow(place: Place) -> Check:
    """MLflow answers at the address a job would use."""
    uri = tracking_uri(place.out)
    if uri.startswith("sqlite:///"):
        # Looking must not create the database.
        folder = Path(uri.removeprefix("sqlite:///")).parent
        fine, said = writable(folder)
        way_out = "" if fine else "choose a writable --out, or set MLFLOW_TRACKING_URI"
        found = f"{version('mlflow')}, {uri}{'' if fine else ': ' + said}"
        return Check(name="mlflow", status="ok" if fine else "warn", found=found, way_out=way_out)
    code = (
        "import os; os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'] = '1';"
        "os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'] = '10';"
        "from mlflow.tracking import MlflowClient;"
        f"print(len(MlflowClient(tracking_uri={uri!r}).search_experiments()), 'experiments')"
    )
    fine, said = probe(code)
    way_out = "" if fine else "check MLFLOW_TRACKING_URI; jobs go on without it and keep a spool"
    found = f"{redact(uri)}: {said}"
    return Check(name="mlflow", status="ok" if fine else "warn", found=found, way_out=way_out)


def check_text_metrics(place: Place) -> Check:
    """BLEU, ROUGE-L and METEOR of generated reports; WordNet adds METEOR with synonyms."""
    code = (
        "import nltk, rouge_score, sacrebleu; from nltk.corpus import wordnet;"
        "from nltk.translate.meteor_score import single_meteor_score as m;"
        "none = type('', (), {'synsets': staticmethod(lambda word: [])})();"
        "assert m(['a', 'b'], ['a', 'b'], wordnet=none) > 0.9\n"
        "try: wordnet.synsets('tumour'); found = 'there'\n"
        "except (LookupError, OSError): found = 'not there: no meteor_wordnet'\n"
        "print('sacrebleu ' + sacrebleu.__version__ + ', nltk ' + nltk.__version__ + "
        "', METEOR by words and stems (no Java), WordNet ' + found)"
    )
    fine, said = probe(code)
    way_out = "" if fine else "pip install sacrebleu rouge-score nltk; report generation needs them"
    return Check(name="text metrics", status="ok" if fine else "warn", found=said, way_out=way_out)


def check_disk(place: Place) -> Check:
    """Room for the output, the slide cache, and Ray's and other temporary files."""
    folders = {
        "out": state_folder(place.out),
        "cache": Path(place.cache),
        "temporary": Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()),
    }
    found, short = [], []
    for name, folder in folders.items():
        free = shutil.disk_usage(existing(folder)).free
        found.append(f"{name} {free / 2**30:.0f} GiB free ({existing(folder)})")
        if free < MIN_FREE_BYTES[name]:
            short.append(f"{name}: {MIN_FREE_BYTES[name] >> 30} GiB are advised")
    status: Literal["ok", "warn"] = "warn" if short else "ok"
    return Check(name="disk", status=status, found=", ".join(found), way_out="; ".join(short))


def check_open_files(place: Place) -> Check:
    """Ray and many open slides need file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    good = unlimited or soft >= MIN_OPEN_FILES
    way_out = "" if good else f"ulimit -n {MIN_OPEN_FILES if hard < 0 else min(hard, 65536)}"
    found = "unlimited" if unlimited else f"{soft} (at most {hard})"
    return Check(name="open files", status="ok" if good else "warn", found=found, way_out=way_out)


CHECKS: dict[str, Callable[[Place], Check]] = {
    "python": check_python,
    "torch": check_torch,
    "gpu": check_gpu,
    "ray": check_ray,
    "openslide": check_openslide,
    "libvips": check_vips,
    "s3": check_s3,
    "mlflow": check_mlflow,
    "text metrics": check_text_metrics,
    "disk": check_disk,
    "open files": check_open_files,
}


def run_check(name: str, check: Callable[[Place], Check], place: Place) -> Check:
    """One check; when the check itself crashes, that is what it found."""
    try:
        return check(place)
    except Exception as error:
        found = f"the check crashed: {type(error).__name__}: {error}"
        way_out = "report this, with the output of mstar doctor --json"
        return Check(name=name, status="fail", found=found, way_out=way_out)


def probe(code: str) -> tuple[bool, str]:
    """Runs Python code in a fresh process: whether it worked, and its last line.

    A library that crashes on import, or a driver that hangs, must not take the doctor with it.
    """
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {PROBE_TIMEOUT_S} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode < 0 and not lines:
        return False, f"killed by signal {-done.returncode}"
    return done.returncode == 0, redact(lines[-1]) if lines else ""


def pinned(distribution: str) -> str:
    """The version that this package's own metadata pins, empty when it does not."""
    for line in metadata.requires("mstar-platform") or []:
        requirement = line.split(";")[0].strip()
        name, _, wanted = requirement.partition("==")
        if name.split("[")[0].strip() == distribution:
            return wanted.strip()
    return ""


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def writable(folder: Path) -> tuple[bool, str]:
    """Whether a file can be made in a folder, or the folder itself below its nearest parent."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            return True, ""
    except OSError as error:
        return False, str(error)
