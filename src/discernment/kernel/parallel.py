"""Work that is spread over threads piece by piece, where each piece is too small to be spread itself."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Do the work on each item, on the CPU in as many threads as torch has.

    Torch spreads each function over its threads and waits for the last of them. Where functions are short that costs
    more than the function, above all when other processes hold the machine: then it is better to have whole items
    side by side. Each of them gets its share of torch's threads.

    Args:
        work: What to do; it runs without gradient mode.
        items: What to do it on.
        device: Where the work runs; elsewhere than on the CPU the items go one after the other.

    Returns:
        What `work` gave, in the items' order.
    """

    def alone(item: Item) -> Result:
        with torch.no_grad():
            return work(item)

    waiting = list(items)
    threads = torch.get_num_threads()
    workers = min(threads, len(waiting))
    if workers < 2 or device.type != "cpu":
        return [alone(item) for item in waiting]
    share = threads // workers
    try:
        torch.set_num_threads(share)  # MKL has one number for all threads, OpenMP one for each
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            return list(pool.map(alone, waiting))
    finally:
        torch.set_num_threads(threads)
