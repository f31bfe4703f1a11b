"""A few threads for work that holds no interpreter lock; started when first needed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    del process  # a fork has its parent's cache, but none of its threads
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lmfs-codec")


def in_parallel(work: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """`work` of each item, in their order."""
    items = list(items)
    if len(items) < 2:
        return [work(item) for item in items]
    return list(_pool(os.getpid()).map(work, items))
