"""What an edit may be changed to: for every relation, and type of object where it is known, a sample of its objects.

The objects with the smallest digests are kept. Which those are depends on the triples and the seed alone, so that samples
of parts merge to the sample of the whole, in any order, and a pool never grows beyond its size.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from orchestrator.data.building.rows import Row, counted, digest, same

POOL_SIZE = 1000
"""Objects in a pool."""

_Pool: TypeAlias = dict[int, str]
_Kind: TypeAlias = tuple[str | None, str | None]


class Pools:
    """Samples of the objects of each relation and type.

    Args:
        seed: Of the build.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[_Kind, _Pool] = {}
        self._limits: dict[_Kind, int] = {}

    def add(self, row: Row) -> None:
        """Take the object of a triple into account."""
        assert row.object is not None
        kind = (row.relation, row.object_type)
        number = digest(self._seed, "pool", row.relation, row.object_type, same(row.object))
        if number > self._limits.get(kind, 2**64):
            return
        pool = self._pools.setdefault(kind, {})
        pool[number] = min(row.object, pool.get(number, row.object))  # one of the spellings, whatever the order
        if len(pool) >= 2 * POOL_SIZE:
            self._pools[kind] = pool = {n: pool[n] for n in sorted(pool)[:POOL_SIZE]}
            self._limits[kind] = max(pool)

    def rows(self) -> Iterator[Row]:
        """The samples as triples without a subject."""
        for (relation, object_type), names in self.all().items():
            yield from (Row(None, relation, name, object_type) for name in names)

    def all(self) -> dict[tuple[str | None, str | None], list[str]]:
        """Every sample, by relation and type."""
        return {kind: self.objects(*kind) for kind in self._pools}

    def objects(self, relation: str | None, object_type: str | None) -> list[str]:
        """The sample of one relation and type, in an order that depends on the seed alone."""
        pool = self._pools.get((relation, object_type), {})
        return [pool[number] for number in sorted(pool)[:POOL_SIZE]]


def sample_objects(rows: Iterable[Row], *, seed: int) -> Iterator[Row]:
    """Samples of the objects of some triples, how many triples there were, and what was noted before."""
    pools, num_triples = Pools(seed), 0
    for row in rows:
        if row.note is not None:
            yield row
            continue
        num_triples += 1
        pools.add(row)
    yield from pools.rows()
    yield counted("usable triple", number=num_triples)
