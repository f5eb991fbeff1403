"""What a run has: GPUs, cores, network, storage, spot nodes and, if the user gives them, prices."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mstar.errors import ConfigError
from mstar.planning.strict import check_date, check_positive, check_range, parse, read_json

WAY_OUT = "See platform/docs/plan.md for what it may hold."


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What the user pays; nothing is built in, since prices change."""

    gpu_hour: float
    """Of a GPU on demand, its share of the node included."""
    date: str
    """Day on which these prices held, as 2026-01-31."""
    gpu_hour_spot: float | None = None
    """Of a GPU on a spot node."""
    million_reads: float | None = None
    """Of a million read requests to object storage."""
    million_writes: float | None = None
    """Of a million write requests to object storage."""
    currency: str = "USD"
    """Printed beside every amount."""

    def __post_init__(self) -> None:
        """Refuses prices without a day, or below zero."""
        check_date("date", self.date)
        for name in ("gpu_hour", "gpu_hour_spot", "million_reads", "million_writes"):
            if getattr(self, name) is not None:
                check_range(self, 0.0, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal nodes and the storage that they read from."""

    gpu: str = "h200"
    """Kind of GPU: h200, h100, h100-pcie, a100, rtx4090; cpu: there is none, cores compute."""
    num_gpus: int = 8
    """GPUs of all nodes together; with gpu cpu the number of nodes."""
    gpus_per_node: int = 8
    """GPUs of a node; with gpu cpu 1."""
    cpu_cores_per_node: int = 96
    """Cores of a node; one of them is left to Ray."""
    node_network_bytes_per_s: float = 12.5e9
    """What a node takes in from its network (100 Gb/s: 12.5e9), and as much out."""
    gpu_link_bytes_per_s: float = 360e9
    """Between GPUs of a node, in all-reduce."""
    gpu_network_bytes_per_s: float = 50e9
    """Between GPUs of different nodes, for each (400 Gb/s: 50e9)."""
    storage_bytes_per_s: float = 0.0
    """Most that the storage gives all nodes together; 0: no limit known."""
    storage_reads_per_s: float = 5_500.0
    """Read requests that the storage answers (S3: 5,500 a prefix); 0: no limit known."""
    storage_writes_per_s: float = 3_500.0
    """Write requests that the storage answers (S3: 3,500 a prefix); 0: no limit known."""
    spot_share: float = 0.0
    """Share of the nodes that may be taken away, 0 to 1."""
    spot_losses_per_node_hour: float = 0.05
    """How often a spot node is taken away, per hour. 0.05: once in 20 hours; an assumption."""
    node_start_s: float = 300.0
    """From a node's loss to its successor taking work, in seconds, the worker's start not among
    them."""
    prices: Annotated[Prices | None, tyro.conf.Suppress] = None
    """What it costs; without it no cost is printed."""

    def __post_init__(self) -> None:
        """Refuses clusters that cannot be."""
        check_range(self, 1, "num_gpus", "gpus_per_node", "cpu_cores_per_node")
        check_positive(
            self, "node_network_bytes_per_s", "gpu_link_bytes_per_s", "gpu_network_bytes_per_s"
        )
        check_range(self, 0.0, "storage_bytes_per_s", "storage_reads_per_s", "storage_writes_per_s")
        check_range(self, 0.0, "spot_share", most=1.0)
        check_range(self, 0.0, "spot_losses_per_node_hour", "node_start_s")
        if self.gpu == "cpu" and self.gpus_per_node != 1:
            raise ConfigError(
                f"gpus_per_node: expected 1 with gpu cpu, got {self.gpus_per_node}. Set it to 1; "
                "num_gpus is then the number of nodes."
            )

    @property
    def has_gpus(self) -> bool:
        """Whether there are GPUs."""
        return self.gpu != "cpu"

    @property
    def num_nodes(self) -> int:
        """Nodes; the last may have fewer GPUs."""
        return -(-self.num_gpus // self.gpus_per_node)

    @property
    def cores(self) -> float:
        """Cores for our work: of every node all but the one that is left to Ray."""
        return float(self.num_nodes * max(1, self.cpu_cores_per_node - 1))

    @property
    def network_bytes_per_s(self) -> float:
        """What all nodes take in together."""
        return self.num_nodes * self.node_network_bytes_per_s

    @property
    def spot_losses_per_s(self) -> float:
        """Nodes lost per second, all spot nodes together."""
        return self.num_nodes * self.spot_share * self.spot_losses_per_node_hour / 3600


def read_cluster(uri: str) -> Cluster:
    """A cluster from a JSON file.

    Raises:
        ConfigError: names file, field, what was expected and found.
    """
    return parse(Cluster, read_json(uri, way_out=WAY_OUT), where=uri)
