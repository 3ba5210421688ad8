"""Damage, by a random generator: `damage` for bytes, `distort` for JSON values, `scribble` for the text of JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

HEAD = 512  # most fields that decide how a file is read stand in its first bytes
_BOUNDARIES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01")
_WEIRD: list[Any] = [
    *json.loads(r"""[
        null, true, false, 0, -1, 1.5, 2147483648, 9223372036854775808, 1e308, -0.0,
        "", " ", "\u0000", "\ud800", "\u00e4\u202e", "true", "de", "srt", "whisper", "canary", "evaluate", "score",
        "embed", [], {}, [[]], [null], {"": null}, ["word", "segment"], {"source": 5}, {"url": "http://127.0.0.1:9/a.wav"},
        "data:", "data:,%", "data:;base64,!!!", "data:audio/wav;base64,UklGRg==", "http://[::1]/a.mp3",
        "file:///etc/passwd", "../../etc/passwd", "/dev/zero", "/proc/self/mem", ".",
        "nobody/parakeet-x", "model.nemo", "/v1/audio/transcriptions", "/v1/models"
    ]"""),
    *(10**400, "x" * 5000, [{}] * 50),
]
_TOKENS = [
    *rb"""NaN Infinity -Infinity 1e999 0x1 \ud800 // , : " ' { } ] null true""".split(),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 5000, b'{"a":' * 5000, b"9" * 6000),
]


def damage(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Return the bytes with one to four faults. `others` are files whose parts may be mixed in."""
    for _ in range(random.randint(1, 4)):
        data = random.choice(_FAULTS)(data, random, others)
    return data


def distort(value: Any, random: Random) -> Any:
    """Return a JSON value in which one to three places have another value, another name, or are missing."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return random.choice(_WEIRD)
        container, key = random.choice(places)
        fault = random.randrange(4)
        if fault == 0:
            del container[key]
        elif fault == 1 and isinstance(container, dict):
            container[random.choice(("", "input", "inputs", "task", "openai_route", "x", f"{key}[]"))] = container[key]
        elif fault == 2:
            container[key] = {"input": container[key]} if random.random() < 0.5 else [container[key]] * 3
        else:
            container[key] = copy.deepcopy(random.choice(_WEIRD))
    return value


def scribble(text: bytes, random: Random) -> bytes:
    """Return the text of a JSON document with a token put in, bits flipped, or its end missing."""
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(text) + 1)
        fault = random.randrange(3)
        if fault == 0:
            text = text[:at] + random.choice(_TOKENS) + text[at + random.randrange(3) :]
        elif fault == 1:
            text = text[:at]
        else:
            text = _flip(text, random, [])
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container of a JSON value with every key or index of it."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in ((value, key), *_places(item))]
    if isinstance(value, list):
        # From the end, so that removing one item does not move the place of another.
        return [place for key in range(len(value) - 1, -1, -1) for place in ((value, key), *_places(value[key]))]
    return []


def _flip(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 16) if changed else 0):
        changed[_position(len(changed), random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    at, size = _position(len(data) + 1, random), random.randint(1, 64)
    return data[:at] + random.randbytes(size) + data[at + size :]


def _boundary_value(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    """A field of 1, 2, 4 or 8 bytes gets a value at which arithmetic fails."""
    at, size = _position(len(data) + 1, random), random.choice((1, 2, 4, 8))
    value = random.choice(_BOUNDARIES) + random.choice((b"\x00", b"\xff")) * (size - 1)
    return data[:at] + (value if random.random() < 0.5 else value[::-1]) + data[at + size :]


def _truncate(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    return data[: _position(len(data) + 1, random)]


def _remove(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    at = _position(len(data) + 1, random)
    return data[:at] + data[at + random.randint(1, max(1, len(data) // 2)) :]


def _repeat(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    at, size = _position(len(data) + 1, random), random.randint(1, 2000)
    return data[:at] + data[at : at + size] * random.randint(2, 20) + data[at:]


def _insert(data: bytes, random: Random, _others: Sequence[bytes]) -> bytes:
    at, size = _position(len(data) + 1, random), random.randint(1, 5000)
    return data[:at] + (random.randbytes(size) if random.random() < 0.5 else bytes(size)) + data[at:]


def _splice(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """The head of this file and the rest of another."""
    other = random.choice(others) if others else data
    return data[: _position(len(data) + 1, random)] + other[_position(len(other) + 1, random) :]


def _append(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    return data + (random.choice(others) if others else data)


# A fault that stands twice is tried twice as often.
_FAULTS: list[Callable[[bytes, Random, Sequence[bytes]], bytes]] = [
    *(_flip, _flip, _boundary_value, _boundary_value),
    *(_overwrite, _truncate, _remove, _repeat, _insert, _splice, _append),
]


def _position(size: int, random: Random) -> int:
    """Return a position below `size`, in the first bytes half of the time."""
    return random.randrange(min(size, HEAD) if random.random() < 0.5 else size) if size else 0
