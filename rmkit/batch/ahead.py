"""The items of an iterator, each made by a thread while the one before it is used."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The same items in the same order, one of them ahead. An error of `items` is raised where its item is asked for.

    It is a context: leaving it waits for the item that is being made, and ends the thread. `at_start` runs in the
    thread before anything else.
    """

    def __init__(self, items: Iterator[T], at_start: Callable[[], None] | None = None) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead", initializer=at_start)
        self._coming = self._pool.submit(next, items)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._coming.result()
        self._coming = self._pool.submit(next, self._items)
        return item

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
