"""How slides reach the GPUs of the embedding job, one worker at a time, and how it begins and ends.

A worker has `OPENERS` threads that each take a slide into custody, fetch it (`STREAMS_PER_SLIDE`
requests at once), and open it. Slides are of very unequal size, so a worker waits now for a long
fetch, now for the GPU, even where neither is the bottleneck on average.

In the end, when no slide is left to be taken, workers stop one after the other, and the job ends
with the one that has most in hand: the slide it reads and those that it fetched ahead. With N
workers that is about the N/(N+1) quantile of what a worker has in hand.
"""

import numpy as np
from jaxtyping import Float64

from mstar.planning.cluster import Cluster
from mstar.planning.phases import mean_latency_s
from mstar.planning.rates import Rates
from mstar.planning.workload import Workload

FETCH_BYTES = 8 << 20  # of a request of the slide cache
STREAMS_PER_SLIDE = 4
OPENERS = 2
SLIDES_AT_ONCE = 4  # of a worker: two bundles, each with a slide that is read and one ahead
OPEN_REQUESTS = 12  # one after the other, beside fetching: custody, grid; counted by a test
WINDOW = 3
SAMPLES = 100_000

Sizes = Float64[np.ndarray, " slide"]


def fill_seconds(work: Workload, cluster: Cluster, rates: Rates) -> float:
    """From a worker's start to its first pixels: a slide of mean size is fetched and opened."""
    mean = np.array([work.patches_per_slide])
    return float(open_seconds(mean, work, cluster, rates)[0])


def opener_seconds(work: Workload, rates: Rates) -> float:
    """Seconds of all slides in the hands of openers, networks being without limit."""
    sizes = slide_sizes(work)
    alone = Cluster(num_gpus=1, gpus_per_node=1, node_network_bytes_per_s=1e15)
    return float(open_seconds(sizes, work, alone, rates).sum()) * work.num_slides / len(sizes)


def uneven_seconds(work: Workload, cluster: Cluster, rates: Rates) -> float:
    """Wall seconds of a worker's share, when slides of unequal size are opened ahead.

    Slides that are read and slides that are opened meanwhile are of independent sizes, and wait
    for one another: as many as an opener may be ahead on average.
    """
    if not cluster.has_gpus:
        return 0.0
    sizes = slide_sizes(work)
    rng = np.random.default_rng(0)
    read, opened = rng.choice(sizes, (2, WINDOW, SAMPLES))
    reading_s = read.mean(0) * read_seconds(work, cluster, rates)
    opening_s = open_seconds(opened, work, cluster, rates).mean(0) / OPENERS
    return float(np.maximum(reading_s, opening_s).mean()) * work.num_slides / cluster.num_gpus


def end_seconds(work: Workload, cluster: Cluster, rates: Rates) -> float:
    """How much longer the job takes than work that could be shared evenly to the last patch."""
    workers = cluster.num_gpus
    if workers == 1:
        return 0.0
    in_hand_s = _seconds_in_hand(work, cluster, rates)
    busy = min(1.0, work.num_slides / workers)
    most_s = np.quantile(in_hand_s, workers / (workers + 1))
    return float(max(0.0, most_s - busy * in_hand_s.mean()))


def read_seconds(work: Workload, cluster: Cluster, rates: Rates) -> float:
    """Seconds per patch of one worker, once a slide is open: decoding or encoding."""
    cores = cluster.cores / cluster.num_gpus
    if not cluster.has_gpus:
        return (rates.patch_read_core_s + 1 / rates.encoder_patches_per_s) / cores
    open_s = rates.slide_open_core_s / work.patches_per_slide
    return max(1 / rates.encoder_patches_per_s, (rates.patch_read_core_s + open_s) / cores)


def open_seconds(sizes: Sizes, work: Workload, cluster: Cluster, rates: Rates) -> Sizes:
    """Seconds of an opener with a slide of each size, on average."""
    num_bytes = sizes * (work.slide_bytes / work.num_patches)
    requests = np.maximum(1.0, np.ceil(num_bytes / FETCH_BYTES))
    latency_s = mean_latency_s(rates)
    streams_s = requests * latency_s + num_bytes / rates.storage_stream_bytes_per_s
    network_s = num_bytes * min(cluster.gpus_per_node, cluster.num_gpus) * OPENERS
    fetch_s = np.maximum(
        streams_s / np.minimum(STREAMS_PER_SLIDE, requests),
        network_s / cluster.node_network_bytes_per_s,
    )
    return np.asarray(fetch_s + OPEN_REQUESTS * latency_s + rates.slide_open_core_s)


def slide_sizes(work: Workload, *, seed: int = 0) -> Sizes:
    """Patches of each slide: the known ones, else lognormal ones that add up to all patches."""
    if work.sizes is not None:
        return work.sizes
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0.0, work.size_spread, work.num_slides)
    return np.asarray(np.maximum(1.0, sizes * (work.num_patches / sizes.sum())))


def _seconds_in_hand(work: Workload, cluster: Cluster, rates: Rates) -> Sizes:
    """Samples of the seconds that a worker still needs when it has taken its last slide."""
    rng, sizes = np.random.default_rng(0), slide_sizes(work)
    read_s = read_seconds(work, cluster, rates)
    slides_per_worker = work.num_slides / cluster.num_gpus
    if slides_per_worker <= SLIDES_AT_ONCE:  # all are taken at once
        last, *others = rng.choice(sizes, (max(1, round(slides_per_worker)), SAMPLES))
        before = sum(others, np.zeros(SAMPLES))
    else:
        read = rng.choice(sizes, SAMPLES, p=sizes / sizes.sum())  # long ones are met more often
        last, *others = rng.choice(sizes, (SLIDES_AT_ONCE - 1, SAMPLES))
        before = read * rng.random(SAMPLES) + sum(others)
    opened_s = open_seconds(last, work, cluster, rates)  # while those before it are read
    return np.asarray(np.maximum(before * read_s, opened_s) + last * read_s)
