"""A discrete-event simulation of the embedding job: fetch → decode → GPU, on many workers.

What it has and the plan's closed form has not: slides of unequal size, given out one by one;
latencies drawn one by one; a bounded queue between decoding and the GPU; nodes that are lost with
what they had in hand, and replaced. Equal seeds give equal results.

A worker takes slides from one list. Some are fetched at once, over the node's network and
the common storage; one is decoded, block after block, into a queue of bounded length; the GPU takes
blocks from there. Whole chunks of a lost worker's slides are kept, as the job keeps them; the rest
goes back to the front of the list.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from mstar.planning.events import Clock, Link
from mstar.planning.machines import Machines, Slides, draw_slides, machines_of
from mstar.planning.stages import Job

NOTHING = -1


@dataclass(slots=True, kw_only=True)
class Run:
    """What came of a simulation.

    encoded_patches: all that GPUs did; of these `lost_patches` were done in vain.
    gpu_busy_s: added up over the GPUs. fetched_bytes: with those fetched again after a loss.
    """

    wall_s: float = 0.0
    done_patches: int = 0
    encoded_patches: int = 0
    lost_patches: int = 0
    gpu_busy_s: float = 0.0
    fetched_bytes: float = 0.0
    losses: int = 0
    events: int = 0
    done_slides: int = 0
    num_workers: int = 1

    @property
    def gpu_busy_share(self) -> float:
        """Share of the wall time in which a GPU computes."""
        return self.gpu_busy_s / (self.wall_s * self.num_workers)

    @property
    def patches_per_s(self) -> float:
        """Useful ones, of all GPUs."""
        return self.done_patches / self.wall_s


@dataclass(slots=True, eq=False)
class _Worker:
    """A GPU with its threads; `life` changes when it is lost, so that its old events are void."""

    node: int
    life: int = 0
    up: bool = False
    fetching: set[int] = field(default_factory=set)
    opened: deque[int] = field(default_factory=deque)
    reading: int = NOTHING
    left: int = 0  # patches of the slide in reading that are still to be decoded
    decoding: int = 0  # patches of the block that is being decoded
    queue: deque[tuple[int, int]] = field(default_factory=deque)  # slide, patches
    encoding: tuple[int, int] | None = None

    def has_room(self, machines: Machines) -> bool:
        """Whether an opener is free, and not too many slides are open already."""
        num_open = len(self.opened) + (self.reading != NOTHING)
        fetching = len(self.fetching)
        return fetching < machines.openers and fetching + num_open < machines.slides_at_once

    def in_hand(self) -> set[int]:
        """The slides that would go back to the list."""
        slides = {*self.fetching, *self.opened, *(slide for slide, _ in self.queue)}
        slides |= {self.reading} if self.reading != NOTHING else set()
        return slides | ({self.encoding[0]} if self.encoding else set())


class Simulation:
    """One run; `run()` once."""

    def __init__(self, slides: Slides, machines: Machines, *, seed: int = 0) -> None:
        """Nothing has happened yet."""
        self._slides, self._m = slides, machines
        self._patches = slides.patches.tolist()
        self._bytes = slides.num_bytes.tolist()
        self._requests = slides.requests.tolist()
        self._fetch_s = slides.fetch_s.tolist()
        self._open_s = (slides.asking_s + machines.open_s).tolist()
        self._waiting = deque(range(len(self._patches)))
        self._encoded = [0] * len(self._patches)
        self._kept = [0] * len(self._patches)
        self._rng = np.random.default_rng([seed, 1])
        self._clock = Clock()
        per_node = machines.workers_per_node
        self._workers = [_Worker(node=at // per_node) for at in range(machines.num_workers)]
        self._nodes = [Link(machines.node_bytes_per_s) for _ in range(self._workers[-1].node + 1)]
        self._storage = Link(machines.storage_bytes_per_s)
        self._asked = Link(machines.storage_reads_per_s)
        self.result = Run(num_workers=machines.num_workers)

    def run(self) -> Run:
        """Until every slide is done."""
        for node in range(len(self._nodes)):
            self._clock.at(self._m.worker_start_s, self._node_up, node)
        while self.result.done_slides < len(self._patches):
            assert self._clock.step(), "slides are left, but nothing will happen"
        self.result.wall_s = self._clock.now_s
        self.result.events = self._clock.events
        self.result.fetched_bytes = self._storage.carried_bytes
        return self.result

    # ------------------------------------------------------------------------------ nodes

    def _node_up(self, node: int) -> None:
        per_node = self._m.workers_per_node
        for at in range(node * per_node, min((node + 1) * per_node, len(self._workers))):
            self._workers[at].up = True
            self._fetch(at)
        spot_nodes = round(self._m.spot_share * len(self._nodes))
        if node < spot_nodes and self._m.losses_per_node_hour > 0:
            life_s = self._rng.exponential(3600 / self._m.losses_per_node_hour)
            self._clock.at(self._clock.now_s + life_s, self._node_lost, node)

    def _node_lost(self, node: int) -> None:
        self.result.losses += 1
        back: set[int] = set()
        for worker in self._workers:
            if worker.node == node:
                back |= worker.in_hand()
                self._forget(worker)
        for slide in sorted(back, reverse=True):
            self._hand_back(slide)
        away_s = self._m.node_start_s + self._m.worker_start_s
        self._clock.at(self._clock.now_s + away_s, self._node_up, node)
        for at, worker in enumerate(self._workers):
            if worker.up:
                self._fetch(at)

    def _forget(self, worker: _Worker) -> None:
        """What is under way will find that the worker's life is over."""
        if worker.encoding is not None:
            self.result.gpu_busy_s -= (
                self._encode_s(worker.encoding[1]) / 2
            )  # cut, half way on average
        worker.life += 1
        worker.up, worker.reading, worker.decoding, worker.encoding = False, NOTHING, 0, None
        worker.fetching.clear()
        worker.opened.clear()
        worker.queue.clear()

    def _hand_back(self, slide: int) -> None:
        whole = self._encoded[slide] // self._m.chunk_patches * self._m.chunk_patches
        self.result.lost_patches += self._encoded[slide] - whole
        self._encoded[slide] = self._kept[slide] = whole
        self._waiting.appendleft(slide)

    # ---------------------------------------------------------------------------- pipeline

    def _fetch(self, at: int) -> None:
        """Take slides on, as long as there are some and the worker has not enough ahead."""
        worker = self._workers[at]
        while self._waiting and worker.has_room(self._m):
            slide = self._waiting.popleft()
            worker.fetching.add(slide)
            now, size = self._clock.now_s, self._bytes[slide]
            arrived = max(
                self._storage.carry(size, now),
                self._nodes[worker.node].carry(size, now),
                self._asked.carry(self._requests[slide], now),
                now + self._fetch_s[slide],
            )
            life = worker.life

            def opened(at: int, slide: int = slide, life: int = life) -> None:
                self._opened(at, slide, life)

            self._clock.at(arrived + self._open_s[slide], opened, at)

    def _opened(self, at: int, slide: int, life: int) -> None:
        worker = self._workers[at]
        if worker.life == life:
            worker.fetching.discard(slide)
            worker.opened.append(slide)
            self._decode(at)
            self._fetch(at)

    def _decode(self, at: int) -> None:
        """Begin with the next block, if there is one and room in the queue."""
        worker, machines = self._workers[at], self._m
        if worker.decoding or len(worker.queue) >= machines.queue_blocks:
            return
        if worker.reading == NOTHING:
            if not worker.opened:
                return
            worker.reading = worker.opened.popleft()
            worker.left = self._patches[worker.reading] - self._kept[worker.reading]
        worker.decoding = min(worker.left, machines.block_patches)
        life = worker.life

        def decoded(at: int) -> None:
            if self._workers[at].life == life:
                self._decoded(at)

        ends_s = self._clock.now_s + worker.decoding / machines.read_patches_per_s
        self._clock.at(ends_s, decoded, at)

    def _decoded(self, at: int) -> None:
        worker = self._workers[at]
        worker.queue.append((worker.reading, worker.decoding))
        worker.left -= worker.decoding
        worker.decoding = 0
        if not worker.left:
            worker.reading = NOTHING
            self._fetch(at)
        self._encode(at)
        self._decode(at)

    def _encode(self, at: int) -> None:
        """Begin with the next block, if there is one and the GPU is free."""
        worker = self._workers[at]
        if worker.encoding is not None or not worker.queue:
            return
        worker.encoding = worker.queue.popleft()
        seconds = self._encode_s(worker.encoding[1])
        self.result.gpu_busy_s += seconds
        life = worker.life

        def encoded(at: int) -> None:
            if self._workers[at].life == life:
                self._finished(at)

        self._clock.at(self._clock.now_s + seconds, encoded, at)
        self._decode(at)  # there is room in the queue

    def _encode_s(self, patches: int) -> float:
        return patches / self._m.encode_patches_per_s

    def _finished(self, at: int) -> None:
        worker = self._workers[at]
        assert worker.encoding is not None
        slide, patches = worker.encoding
        worker.encoding = None
        self._encoded[slide] += patches
        self.result.encoded_patches += patches
        if self._encoded[slide] == self._patches[slide]:
            self.result.done_slides += 1
            self.result.done_patches += self._patches[slide]
        self._encode(at)


def simulate(job: Job, *, seed: int = 0) -> Run:
    """The embedding job of a plan, simulated."""
    return Simulation(draw_slides(job, seed=seed), machines_of(job), seed=seed).run()
