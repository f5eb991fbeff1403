"""Small cohorts for the jobs' tests, and how to look at what they left."""

import hashlib
from dataclasses import replace
from pathlib import Path

import ray

from mstar.embed.config import EmbedConfig, RunConfig
from mstar.recipes.embed import debug
from support.slides import SlideSpec, write_slide


def write_cohort(folder: Path, *, num_slides: int = 5, **fields: object) -> Path:
    """Slides of different sizes; the last one is the largest."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_slides):
        spec = SlideSpec(
            width=1200 + 256 * number,
            height=1100,
            seed=number,
            **fields,  # type: ignore[arg-type]
        )
        write_slide(folder / f"slide {number} ü.svs", spec)
    return folder


def quick_embed(slides: Path | str, out: Path | str, **fields: object) -> EmbedConfig:
    """The debug recipe, small batches, every slide over 16 patches split, nothing tracked."""
    run_fields = {name: fields.pop(name) for name in list(fields) if hasattr(RunConfig, name)}
    run = RunConfig(
        **{"bundle_batches": 2, "tracking": False, "workers": 1, "cpus_per_worker": 1.0}
        | run_fields  # type: ignore[arg-type]
    )
    config = replace(debug(), slides=str(slides), out=str(out), batch_size=4, run=run)
    return replace(config, **fields)  # type: ignore[arg-type]


def output_digests(out: Path) -> dict[str, str]:
    """Name → sha256 of every feature file."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.h5"))
    }


def leftovers(out: Path) -> list[str]:
    """Files that should be gone once a job is complete: parts, claims, attempts, temporary files.

    The plan of a killed driver stays for a day, since a live run may still read it.
    """
    state = [*out.glob("_state/*/**/*"), *out.rglob(".*")]
    files = [path.relative_to(out) for path in state if path.is_file()]
    return [str(path) for path in files if path.parts[:2] != ("_state", "plans")]


def ray_processes(actor_class: str) -> list[int]:
    """Pids of this session's Ray workers that run an actor of the named class."""
    session = ray._private.worker._global_node.session_name
    found = []
    for entry in Path("/proc").iterdir():
        line = _command(entry.name) if entry.name.isdigit() else ""
        if line.startswith("ray::") and actor_class in line and session in _command(_parent(entry)):
            found.append(int(entry.name))
    return found


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _parent(entry: Path) -> str:
    try:
        return (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
    except OSError:
        return "0"
