"""Who sent a request, by its API key, and whose jobs the sender may see.

    callers = Callers(keys, admin_keys(settings))
    scope[CALLER] = callers.of(key)                  done by the authentication, for each request
    async def route(caller: SentBy): ...             read by the routes of jobs

The caller of a job is stored with the job, as a hash of the key. An operator sees the jobs of all keys, and jobs that
were submitted without a key, and may download and remove models. If the server accepts one key or requires none,
everybody who is let in is an operator. Otherwise the operators are the keys of ADMIN_API_KEY.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from worker.config import Settings
from worker.errors import ConfigError
from worker.jobs.records import Batch, Job, StoredFile

CALLER = "aviary.caller"  # the caller's key in an ASGI scope


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. `owner` names the API key in the job store, or is None if the request has no key."""

    owner: str | None
    is_operator: bool

    @property
    def sees_jobs_of(self) -> str | None:
        """The owner whose jobs the caller may see; None stands for all jobs."""
        return None if self.is_operator else self.owner

    def may_see(self, stored: Job | StoredFile | Batch) -> bool:
        """Return whether the caller may read and cancel the job or the batch, or read and delete the file."""
        return self.is_operator or (self.owner is not None and self.owner == stored.owner)


class Callers:
    """The callers of one server. `keys`: all keys that it accepts. `admins`: those of them that ADMIN_API_KEY lists."""

    def __init__(self, keys: Collection[bytes], admins: Collection[bytes]) -> None:
        everybody = len(set(keys)) < 2
        self._by_key = {key: Caller(_owner(key), everybody or key in admins) for key in keys}
        self._without_key = Caller(None, is_operator=not keys)

    def of(self, key: bytes | None) -> Caller:
        """Return the caller with a valid key, or the caller of a request that requires no key (None)."""
        return self._without_key if key is None else self._by_key[key]


def admin_keys(settings: Settings) -> list[bytes]:
    """Return the keys of ADMIN_API_KEY. Raises: ConfigError if it holds no key, or if the server requires no key."""
    if settings.admin_api_key is None:
        return []
    if settings.api_key in (None, "off"):
        raise ConfigError("ADMIN_API_KEY requires API_KEY: set API_KEY to the keys of the other clients.")
    found = [key.strip().encode("utf-8", "surrogateescape") for key in settings.admin_api_key.split(",") if key.strip()]
    if not found:
        raise ConfigError("ADMIN_API_KEY is set but holds no key. Set it to a key, or unset it.")
    return found


def _owner(key: bytes) -> str:
    """Return a name of the key from which the key cannot be computed. The name is the same in all processes."""
    return hashlib.sha256(b"aviary job owner: " + key).hexdigest()[:32]


def caller_of(http: HTTPConnection) -> Caller:
    """Return the caller that the authentication found."""
    caller: Caller = http.scope[CALLER]
    return caller


SentBy = Annotated[Caller, Depends(caller_of)]
