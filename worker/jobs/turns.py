"""Whose pending jobs are claimed next: the API keys take turns, so a long queue of one key delays no other key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa

from worker.jobs.schema import jobs


def running(connection: sa.Connection) -> Counter[str | None]:
    """Return how many jobs of each API key run."""
    query = sa.select(jobs.c.owner, sa.func.count()).where(jobs.c.state == "processing").group_by(jobs.c.owner)
    return Counter(dict(connection.execute(query).tuples().all()))


def pending(connection: sa.Connection, limit: int) -> dict[str | None, list[int]]:
    """Return and lock the `limit` oldest pending jobs of each API key, by their numbers."""
    return {
        owner: list(
            connection.scalars(
                sa.select(jobs.c.number)
                .where(jobs.c.state == "pending", jobs.c.owner.is_(None) if owner is None else jobs.c.owner == owner)
                .order_by(jobs.c.number)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
        )
        for owner in (None, *_pending_keys(connection))
    }


def _pending_keys(connection: sa.Connection) -> Iterator[str]:
    """Yield each API key with pending jobs. One look-up in the index a key, however many jobs there are."""
    query = sa.select(sa.func.min(jobs.c.owner)).where(jobs.c.state == "pending")
    key = connection.scalar(query)
    while key is not None:
        yield key
        key = connection.scalar(query.where(jobs.c.owner > key))


def in_turns(pending: Mapping[str | None, Sequence[int]], running: Mapping[str | None, int], limit: int) -> list[int]:
    """Return up to `limit` jobs: each the oldest of the API key of which the fewest jobs run or are taken."""
    turns = [
        (running.get(owner, 0) + place, number)
        for owner, numbers in pending.items()
        for place, number in enumerate(numbers)
    ]
    return [number for _, number in sorted(turns)[:limit]]
