"""The targets: how each makes a case from its number, runs it, and checks the response."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any, NoReturn

import httpx

from tools.fuzz import inputs
from tools.fuzz.mutations import damage, distort, scribble
from tools.fuzz.session import Fault, Session
from worker.errors import AviaryError, InternalError
from worker.protocol.request import parse, unwrap

FILES_IN_A_BATCH = 8
DAMAGED = ("decode_failed", "empty_audio", "too_long")  # the codes that a damaged file may end with


def generator(seed: int, target: str, number: int) -> Random:
    """Return the random generator of one case."""
    return Random(f"{seed}:{target}:{number}")  # noqa: S311  repeatable, and no secret


async def containers(session: Session, random: Random) -> None:
    """Send a batch of damaged files around an intact one through the handler. Raise Fault."""
    sources = []
    for number in range(FILES_IN_A_BATCH):
        data = damage(random.choice(session.files), random, session.files)
        if random.random() < 0.5:
            sources.append(inputs.data_uri(data))
        else:
            path = session.folder / f"{number}.{random.choice(('wav', 'mp3', 'm4a', 'webm', 'bin'))}"
            path.write_bytes(data)
            sources.append(str(path))
    intact = random.randrange(len(sources) + 1)
    sources.insert(intact, str(inputs.INTACT))
    items = [{"source": source, "id": number} for number, source in enumerate(sources)]
    answer = await session.worker.handle({"id": "fuzz", "input": {"inputs": items}})
    strict(json.dumps(answer))
    if "results" not in answer:
        raise Fault(f"the batch failed as a whole: {answer}")
    if [result.get("id") for result in answer["results"]] != list(range(len(sources))):
        raise Fault("results are not in the order of the inputs")
    for number, result in enumerate(answer["results"]):
        if "error" in result and result["error"]["code"] not in DAMAGED:
            raise Fault(f"input {number} ended with {result['error']}")
    if answer["results"][intact].get("text") != inputs.INTACT_TEXT:
        raise Fault(f"the intact file was affected: {answer['results'][intact]}")


async def payloads(session: Session, random: Random) -> None:
    """Validate a distorted payload, and send a distorted or scribbled body to a route. Raise Fault."""
    audio = inputs.INTACT.read_bytes()[:2000]
    payload = distort(random.choice(inputs.payloads(audio)), random)
    try:
        parse(unwrap(payload), session.settings)
    except InternalError as error:
        raise Fault(f"an internal error: {error}") from error
    except AviaryError as error:
        error.message.encode(errors="surrogatepass")
    answer = await session.worker.handle({"id": "fuzz", "input": payload})
    check_text(json.dumps(answer))
    path, body = random.choice(inputs.bodies(audio))
    if random.random() < 0.5:
        content = json.dumps(distort(body, random)).encode()
    else:
        content = scribble(json.dumps(body).encode(), random)
    await _post(session, path, content, {"content-type": "application/json"})


async def forms(session: Session, random: Random) -> None:
    """Send a damaged form to a route, in pieces of random sizes and sometimes with a wrong length. Raise Fault."""
    audio = damage(random.choice(session.files), random, session.files) if random.random() < 0.3 else session.files[0]
    path, fields = random.choice(inputs.forms(audio))
    boundary = random.choice((b"b", b"-" * 40, b"boundary" * 8))
    fields = [field for field in fields for _ in range(random.choice((1, 1, 1, 1, 0, 2)))]
    if random.random() < 0.1:
        fields += [("x", "f" if random.random() < 0.5 else None, b"x")] * random.randint(1, 400)
    content = inputs.encoded(fields, boundary)
    if random.random() < 0.7:
        content = damage(content, random, [content])
    named = damage(boundary, random, [boundary]) if random.random() < 0.1 else boundary
    kind = b"multipart/form-data; boundary=" + named.replace(b"\r", b"").replace(b"\n", b"")
    headers = {"content-type": kind.decode("latin-1")}
    if random.random() < 0.7:
        headers["content-length"] = str(max(0, len(content) + random.choice((0, 0, 0, -1, 1, 10**6, -(10**6)))))
    await _post(session, path, _pieces(content, random), headers)


async def _pieces(content: bytes, random: Random) -> AsyncIterator[bytes]:
    at = 0
    while at < len(content):
        size = random.choice((1, 7, 500, 65_536))
        yield content[at : at + size]
        at += size


async def _post(session: Session, path: str, content: Any, headers: dict[str, str]) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    response = await session.client.post(path, content=content, headers=httpx.Headers(encoded))
    if response.status_code >= 500:
        raise Fault(f"{path} responds with status {response.status_code}: {response.text[:300]}")
    check_text(response.text)
    if response.headers.get("content-type", "").startswith("application/json"):
        strict(response.text)


def check_text(text: str) -> None:
    """Raise Fault if a response contains an internal error."""
    if "internal_error" in text or "internal error" in text:
        raise Fault(f"an internal error: {text[:300]}")


def strict(text: str) -> Any:
    """Return the value of a JSON text. Raise Fault for NaN, infinities, and text that is not JSON."""

    def refuse(token: str) -> NoReturn:
        raise Fault(f"the response contains {token}, which is not JSON")

    try:
        text.encode()
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise Fault(f"the response is not JSON: {error}") from error


TARGETS = {"containers": containers, "payloads": payloads, "forms": forms}
