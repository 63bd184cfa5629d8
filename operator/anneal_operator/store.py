"""The local picture of one kind, fed by reflectors and read by everybody else.

Objects are treated as immutable once stored: readers get the stored object itself and must not
change it (the domain reads them into frozen models). An index by label finds children by job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from anneal_operator.workqueue import Key

Object = dict[str, Any]
OnChange = Callable[[Key, Object | None, Object | None], None]
"""Called with the key, the object before (None: new) and after (None: gone)."""


def key_of(obj: Object) -> Key:
    """`namespace/name` of an object as the API server sent it."""
    meta = obj["metadata"]
    return Key(str(meta.get("namespace") or ""), str(meta["name"]))


def version_of(obj: Object | None) -> str:
    """The opaque resource version; never compared but for equality."""
    return "" if obj is None else str(obj["metadata"].get("resourceVersion") or "")


class Store:
    """All known objects of one kind, with one index."""

    def __init__(self, *, index: Callable[[Object], str] | None = None) -> None:
        self._objects: dict[Key, Object] = {}
        self._index_of = index
        self._index: dict[str, set[Key]] = {}
        self._listeners: list[OnChange] = []

    def __len__(self) -> int:
        return len(self._objects)

    def listen(self, listener: OnChange) -> None:
        """Call `listener` after every change, in the order of the changes."""
        self._listeners.append(listener)

    def get(self, key: Key) -> Object | None:
        return self._objects.get(key)

    def all_keys(self) -> tuple[Key, ...]:
        return tuple(self._objects)

    def values(self) -> tuple[Object, ...]:
        return tuple(self._objects.values())

    def indexed(self, value: str) -> tuple[Object, ...]:
        """Objects whose index function gave `value`, in the order of their keys."""
        return tuple(self._objects[key] for key in sorted(self._index.get(value, ())))

    def put(self, obj: Object) -> None:
        """Take in a new or changed object."""
        key = key_of(obj)
        before = self._objects.get(key)
        self._unindex(key, before)
        self._objects[key] = obj
        if self._index_of is not None:
            self._index.setdefault(self._index_of(obj), set()).add(key)
        if version_of(before) != version_of(obj) or before is None:
            self._tell(key, before, obj)

    def remove(self, key: Key) -> None:
        """Take out an object that is gone."""
        before = self._objects.pop(key, None)
        if before is not None:
            self._unindex(key, before)
            self._tell(key, before, None)

    def replace(self, objects: Iterable[Object], *, namespace: str | None) -> None:
        """Make the picture of `namespace` (None: of everything) equal to a fresh list.

        Tells of every object that changed and of every one that vanished: this is how deletions
        during an outage are seen.
        """
        fresh = {key_of(obj): obj for obj in objects}
        known = [key for key in self._objects if namespace is None or key.namespace == namespace]
        for key in known:
            if key not in fresh:
                self.remove(key)
        for obj in fresh.values():
            self.put(obj)

    def _unindex(self, key: Key, obj: Object | None) -> None:
        if obj is None or self._index_of is None:
            return
        value = self._index_of(obj)
        keys = self._index.get(value, set())
        keys.discard(key)
        if not keys:
            self._index.pop(value, None)

    def _tell(self, key: Key, before: Object | None, after: Object | None) -> None:
        for listener in self._listeners:
            listener(key, before, after)
