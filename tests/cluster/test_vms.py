"""`ray up` configs against Ray's own schema, and what both clouds must have in common."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from support.manifests import CLUSTER, ROOT, documents, ray_spec

CLOUDS = ("aws", "gcp")
Config = dict[str, Any]


def config_of(cloud: str) -> Config:
    found: Config = yaml.safe_load((CLUSTER / f"ray_up_{cloud}.yaml").read_text())
    return found


@pytest.mark.parametrize("cloud", CLOUDS)
def test_rays_schema_takes_it(cloud: str) -> None:
    """After Ray has filled in its defaults, as `ray up` does."""
    validate_config(prepare_config(config_of(cloud)))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_rays_schema_refuses_a_typo(cloud: str) -> None:
    with pytest.raises(Exception, match="docker_image"):
        validate_config(prepare_config({**config_of(cloud), "docker_image": "x"}))


def is_spot(node: Config, cloud: str) -> bool:
    if cloud == "aws":
        market: str = node.get("InstanceMarketOptions", {}).get("MarketType", "")
        return market == "spot"
    return any(part.get("provisioningModel") == "SPOT" for part in node.get("scheduling", ()))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_groups_are_those_of_kubernetes(cloud: str) -> None:
    """Same names, same market, none on the head; the sum of groups is within the limit."""
    config = config_of(cloud)
    (cluster,) = documents(CLUSTER / "raycluster.yaml")
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert not is_spot(head["node_config"], cloud)
    groups = {group["groupName"]: group for group in ray_spec(cluster)["workerGroupSpecs"]}
    assert types.keys() == groups.keys()
    for name, node in types.items():
        market = groups[name]["labels"]["ray.io/market-type"]
        assert is_spot(node["node_config"], cloud) == (market == "spot"), name
        assert node["min_workers"] == 0  # nothing runs, and costs, without work
    assert sum(node["max_workers"] for node in types.values()) <= config["max_workers"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_same_image_and_token(cloud: str) -> None:
    config = config_of(cloud)
    (cluster,) = documents(CLUSTER / "raycluster.yaml")
    (head,) = ray_spec(cluster)["headGroupSpec"]["template"]["spec"]["containers"]
    assert config["docker"]["image"] == head["image"]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/mstar/.ray/auth_token"] == "~/.ray/auth_token"
    commands = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "--num-cpus=0" in commands


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_start_knows_the_flags(cloud: str) -> None:
    """The commands' flags are flags of this Ray."""
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    config = config_of(cloud)
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert set(re.findall(r"--[a-z-]+", command)) <= known


def test_nodes_hold_no_keys() -> None:
    """On AWS instances have profiles, heads and workers different ones; no key in the file."""
    types = config_of("aws")["available_node_types"]
    profiles = {name: node["node_config"]["IamInstanceProfile"] for name, node in types.items()}
    assert profiles.pop("head") == {"Name": "mstar-head"}
    assert all(profile == {"Name": "mstar-worker"} for profile in profiles.values())
    assert all(
        n["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for n in types.values()
    )
    assert "AWS_SECRET" not in (CLUSTER / "ray_up_aws.yaml").read_text()


def test_slurm_script_is_a_script_with_known_flags() -> None:
    """Bash reads it, and `ray symmetric-run` and `ray start` have its flags."""
    from ray.scripts.scripts import start

    path = CLUSTER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
    call = re.search(r"/ray\" symmetric-run(.+?) -- ", path.read_text(), re.DOTALL)
    assert call is not None
    known = {name for parameter in start.params for name in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", call[1])) <= known | {"--min-nodes"}


@pytest.mark.parametrize("name", ["bin/run-job", "install.sh", "slurm.sbatch"])
def test_shell_scripts_are_sound(name: str) -> None:
    shellcheck = shutil.which("shellcheck") or str(ROOT / ".venv" / "bin" / "shellcheck")
    if shutil.which(shellcheck) is None:
        pytest.skip("shellcheck is not installed here")
    done = subprocess.run([shellcheck, str(CLUSTER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
