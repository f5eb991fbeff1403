"""The gate lets many in or one; lookahead keeps order and its bound."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from mstar.embed.gate import Gate
from mstar.embed.lookahead import ahead, mapped


def test_alone_means_alone() -> None:
    gate, inside, seen = Gate(), [], []
    lock = threading.Lock()

    def shared() -> None:
        for _ in range(20):
            with gate.shared():
                with lock:
                    inside.append("shared")
                time.sleep(0.0005)
                with lock:
                    inside.remove("shared")

    def alone() -> None:
        for _ in range(10):
            with gate.alone():
                with lock:
                    seen.append(list(inside))
                time.sleep(0.001)
                with lock:
                    seen.append(list(inside))

    threads = [threading.Thread(target=work) for work in (shared, shared, alone, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert len(seen) == 40
    assert not any(seen)


def test_shared_is_shared() -> None:
    gate = Gate()
    with gate.shared(), gate.shared():
        pass  # a second sharer does not wait for the first


def test_mapped_keeps_order_and_bound() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (item % 3))
        with lock:
            running -= 1
        return item * item

    with ThreadPoolExecutor(8) as pool:
        assert list(mapped(pool, work, range(30), 3)) == [i * i for i in range(30)]
    assert 2 <= most <= 4  # the one waited for, and three ahead


def test_ahead_starts_no_more_than_its_depth() -> None:
    started: list[int] = []

    def futures():
        for number in range(10):
            started.append(number)
            future: Future[int] = Future()
            future.set_result(number)
            yield future

    taken = ahead(futures(), 2)
    assert next(taken).result() == 0
    assert started == [0, 1, 2]
