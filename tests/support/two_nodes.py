"""Run by test_job_s3 in a process of its own: two local Ray nodes, three encoder actors, S3.

Each node has its own staging cache, as two machines would: `MSTAR_CACHE_DIR` differs.
"""

import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from mstar.embed import job
from support.cohorts import quick_embed


def main(slides: str, out: str, scratch: str) -> int:
    """Embed `slides` into `out` on two nodes."""
    caches = [Path(scratch) / f"node{number}" for number in range(2)]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "env_vars": {"MSTAR_CACHE_DIR": str(caches[0])}},
    )
    cluster.add_node(num_cpus=2, env_vars={"MSTAR_CACHE_DIR": str(caches[1])})
    ray.init(address=cluster.address, log_to_driver=False)
    code = job.run(quick_embed(slides, out, workers=3, cpus_per_worker=1.0, bundle_batches=2))
    ray.shutdown()
    cluster.shutdown()
    used = sum(any(cache.rglob("*")) for cache in caches)
    print(f"caches used: {used}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
