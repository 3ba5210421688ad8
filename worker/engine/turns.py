"""Whose turn it is: the devices' time is shared fairly, by seconds of audio. Pure: no clock, no lock, no device.

    enter(flow)              work of the flow waits from now on        ┐
    leave(flow)              some of it no longer waits                │ Turns: one level
    charge(flow, seconds)    work of the flow runs                     │
    end(work)                work that ran has ended                   ┘

    enter, leave, charge and end of a Turn                               FairShare: owners, then each owner's requests

A flow is an owner of requests, or one request. Each flow has a start: the virtual time from which on it is owed more.
The flow with the lowest start is next. What runs for a flow raises its start by its seconds. Virtual time advances by
the seconds of audio that ran, divided by the number of flows that had work. A flow that had no work starts at the
present virtual time: it gains nothing by having been idle, and goes before every flow that got more than its share.
The rule is that of WF2Q+ (J. Bennett and H. Zhang, "Hierarchical packet fair queueing algorithms", 1997). But a new
flow starts a batch earlier, so that it also goes before a flow that is behind its share by less than a batch.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from worker.types import Turn

Flow = TypeVar("Flow", bound=Hashable)

RECENT = 8  # batches

Place = tuple[float, bool, int]
"""A flow's start. Between equal starts, a new flow goes first, then the flow that has waited longest."""


class Turns(Generic[Flow]):
    """Flows that share one resource equally."""

    def __init__(self) -> None:
        self._time = 0.0  # virtual
        self._starts: dict[Flow, float] = {}  # of the flows that wait, or that got more than their share
        self._waiting: Counter[Flow] = Counter()  # pieces of work
        self._numbers: dict[Flow, int] = {}  # of the flows that wait
        self._new: set[Flow] = set()  # the flows that wait and that nothing has run for
        self._count = itertools.count()
        self._recent: deque[float] = deque([0.0], maxlen=RECENT)  # seconds of audio of the last batches

    def enter(self, flow: Flow) -> None:
        """Count a piece of work that waits from now on."""
        if not self._waiting[flow]:
            if flow not in self._starts:
                self._new.add(flow)
                self._starts[flow] = self._time - max(self._recent)
            else:
                self._starts[flow] = max(self._time, self._starts[flow])
            self._numbers[flow] = next(self._count)
        self._waiting[flow] += 1

    def leave(self, flow: Flow) -> None:
        """Count a piece of work that no longer waits."""
        self._waiting[flow] -= 1
        if not self._waiting[flow]:
            del self._waiting[flow], self._numbers[flow]
            self._new.discard(flow)

    def charge(self, flow: Flow, seconds: float) -> None:
        """Count work of the flow that runs from now on, at the place that the flow has."""
        self._starts[flow] = self._starts.get(flow, self._time) + seconds
        self._new.discard(flow)

    def end(self, work: Mapping[Flow, float]) -> None:
        """Let virtual time advance by work that has ended, in seconds by flow."""
        self._recent.append(sum(work.values()))
        self._time += self._recent[-1] / len(work.keys() | self._waiting.keys())
        for flow in [flow for flow, start in self._starts.items() if start <= self._time and flow not in self._waiting]:
            del self._starts[flow]

    def settle(self) -> None:
        """Let virtual time reach the lowest start: the next flow is never ahead of its share."""
        self._time = max(self._time, min((self._starts[flow] for flow in self._waiting), default=self._time))

    def place(self, flow: Flow) -> Place:
        """Return the place of a flow that waits. The lowest is next."""
        return self._starts[flow], flow not in self._new, self._numbers[flow]

    def is_owed(self, flow: Flow) -> bool:
        """Whether a flow that waits has not got more than its share."""
        return self._starts[flow] <= self._time

    def is_new(self, flow: Flow) -> bool:
        """Whether nothing has run yet for a flow that waits."""
        return flow in self._new

    def has(self, flow: Flow) -> bool:
        """Whether the flow waits, or has got more than its share."""
        return flow in self._starts


class FairShare:
    """Owners that share equally, whose requests share the owner's part equally."""

    def __init__(self) -> None:
        self._owners: Turns[str | None] = Turns()
        self._requests: dict[str | None, Turns[int]] = {}

    def enter(self, turn: Turn) -> None:
        """Count a piece of work that waits from now on."""
        self._owners.enter(turn.owner)
        self._requests.setdefault(turn.owner, Turns()).enter(turn.request)

    def leave(self, turn: Turn) -> None:
        """Count a piece of work that no longer waits."""
        self._owners.leave(turn.owner)
        self._requests[turn.owner].leave(turn.request)

    def charge(self, turn: Turn, seconds: float) -> None:
        """Count work that runs from now on. It waited until now."""
        self._owners.charge(turn.owner, seconds)
        self._requests[turn.owner].charge(turn.request, seconds)

    def end(self, work: Iterable[tuple[Turn, float]]) -> None:
        """Count work that has ended, in seconds."""
        by_owner: dict[str | None, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for turn, seconds in work:
            by_owner[turn.owner][turn.request] += seconds
        for owner, by_request in by_owner.items():
            if owner in self._requests:
                self._requests[owner].end(by_request)
        self._owners.end({owner: sum(by_request.values()) for owner, by_request in by_owner.items()})
        for owner in [owner for owner in self._requests if not self._owners.has(owner)]:
            del self._requests[owner]

    def settle(self) -> None:
        """Let virtual time reach the lowest starts. Call it before `place` and `is_new`."""
        self._owners.settle()
        for requests in self._requests.values():
            requests.settle()

    def place(self, turn: Turn) -> tuple[Place, Place]:
        """Return the place of a request that waits. The lowest is next."""
        return self._owners.place(turn.owner), self._requests[turn.owner].place(turn.request)

    def is_new(self, turn: Turn) -> bool:
        """Whether nothing has run yet for a request that waits, and its owner has not got more than its share."""
        return self._requests[turn.owner].is_new(turn.request) and self._owners.is_owed(turn.owner)
