"""Jobs on their way into the store: those that come while others are being stored are stored together.

A transaction and a thread's turn cost several times what a job in them does, and under load many come at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from worker.errors import StoreError
from worker.jobs.records import Job, Submission

StoreAll = Callable[[Sequence[Submission]], list[Job]]


class SubmissionBatcher:
    """`store_all`: blocks; stores all or none. For one event loop."""

    def __init__(self, store_all: StoreAll) -> None:
        self._store_all = store_all
        self._coming: list[tuple[Submission, asyncio.Future[Job]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, submission: Submission) -> Job:
        """Raises what `store_all` raises for it alone. To be stored even if the caller is cancelled."""
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._coming.append((submission, future))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store())
        return await future

    async def _store(self) -> None:
        try:
            while self._coming:
                some, self._coming = self._coming, []
                outcomes = await asyncio.to_thread(self._outcomes, [submission for submission, _ in some])
                for (_, future), outcome in zip(some, outcomes, strict=True):
                    if future.done():  # cancelled
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._storing = None

    def _outcomes(self, submissions: list[Submission]) -> list[Job | Exception]:
        """What became of each; one that cannot be stored keeps out no other. A store that fails is not asked again: it
        may have stored them nonetheless, and may take long to fail."""
        try:
            return list(self._store_all(submissions))
        except StoreError as error:
            return [error] * len(submissions)
        except Exception as error:  # noqa: BLE001  each caller is told his own
            if len(submissions) == 1:
                return [error]
            return [outcome for one in submissions for outcome in self._outcomes([one])]
