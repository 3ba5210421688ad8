"""nginx before the workers: where it is, and its whole configuration, made of the settings.

Everything that it writes is in the supervisor's folder, so it runs as anybody. `upstream` holds only workers that
answer: the
supervisor looks after them, writes the configuration anew when one comes or goes, and has nginx read it. Between a
death and
that, requests find the next worker: those that a worker had not answered are sent again, up to TRIES times in all.
That is
safe, because a transcription that is done twice says the same; a job that is queued twice runs twice. It is bounded,
because a request might be what ends its worker.

    find()                                   nginx, or None
    configuration(settings, folder, …)       the text of nginx.conf
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.entrypoints.http.auth import FORM_BYTES
from worker.errors import (
    AviaryError,
    DeadlineExceeded,
    InternalError,
    RateLimited,
    RequestError,
    StillLoading,
    TooLarge,
    Unauthorized,
)

TRIES = 3
MISSING = (
    "nginx was not found, so the workers share the port themselves: requests do not go to the least busy worker, "
    "are not retried when a worker dies, and RATE_LIMIT counts per worker. Install nginx (Debian and Ubuntu: "
    "apt install nginx-light; macOS: brew install nginx)"
)
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")  # which are not on everybody's PATH
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def find() -> Path | None:
    """nginx, on PATH or where systems put it."""
    found = shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_PLACES))
    return Path(found) if found else None


def configuration(settings: Settings, folder: Path, sockets: Sequence[Path]) -> str:
    """nginx.conf, for these workers' Unix sockets. `folder`: the supervisor's, with its own socket `front`."""
    asked = bool(settings.rate_limit or (settings.api_key and settings.api_key != "off"))
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    size = max(settings.max_audio_bytes + FORM_BYTES, settings.max_json_bytes)
    wait = round(settings.request_timeout_sec * 1000)
    upstream = "\n        ".join(f"server {_quoted(f'unix:{socket}')} max_fails=0;" for socket in sockets)
    errors = _ERRORS | (_VERDICTS if asked else {}) | ({} if sockets else {502: _NOBODY})
    answers = "\n        ".join(_answer(status, error) for status, error in errors.items())
    temporary = "\n    ".join(f"{name}_temp_path {_quoted(folder / name)};" for name in _TEMPORARY)
    return f"""\
daemon off;
pid {_quoted(folder / "nginx.pid")};
error_log stderr error;
worker_processes {min(4, os.cpu_count() or 1)};
worker_shutdown_timeout {wait + 30_000}ms;
{user}
events {{ worker_connections 4096; }}
http {{
    {temporary}
    access_log off;
    server_tokens off;
    upstream workers {{
        zone workers 256k;
        least_conn;
        {upstream or "server unix:/nowhere;"}
    }}
    upstream control {{ server {_quoted(f"unix:{folder}/control")} max_fails=0; }}
    server {{
        listen {_quoted(listen(settings))};
        client_max_body_size {size};
        client_body_buffer_size 1m;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_buffering off;
        proxy_connect_timeout 10s;
        proxy_send_timeout 60s;
        # the worker says itself when the time is over, and then nobody else is asked
        proxy_read_timeout {wait + 30_000}ms;
        proxy_next_upstream_timeout {wait}ms;
        proxy_next_upstream error timeout invalid_header http_429 http_502 http_503 http_504 non_idempotent;
        proxy_next_upstream_tries {TRIES};
        location / {{
            {_ASKED if asked else ""}
            proxy_pass http://workers;
        }}
        location = /metrics {{ proxy_pass http://control; }}
        location = /stats {{ proxy_pass http://control; }}
        location = {_GATE} {{
            internal;
            proxy_pass http://control/gate$request_uri;
            proxy_method $request_method;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
        {answers}
    }}
}}
"""


def listen(settings: Settings) -> str:
    """The address, as nginx calls it."""
    if settings.audio_score_server_socket is not None:
        return f"unix:{settings.audio_score_server_socket}"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


_GATE = "/-/gate"
_ASKED = f"""auth_request {_GATE};
            auth_request_set $again $upstream_http_retry_after;"""

# What nginx itself has to say, as OpenAI's error object, by nginx's status.
_ERRORS: dict[int, AviaryError] = {
    400: RequestError("the request is not HTTP that can be read"),
    408: RequestError("the body did not come in time"),
    413: TooLarge("the body is larger than an upload may be (MAX_AUDIO_BYTES)"),
    414: RequestError("the address is too long"),
    500: InternalError("a fault of the gateway (see the log)"),
    502: InternalError("the worker ended before it answered, and so did those that were asked after it"),
    504: DeadlineExceeded("no worker answered in time (REQUEST_TIMEOUT_SEC)"),
}
_NOBODY = StillLoading("no worker is there yet, or none any more: try again in a moment")
_VERDICTS: dict[int, AviaryError] = {  # the gate's
    401: Unauthorized("send the API key as a bearer token: Authorization: Bearer <key>"),
    403: RateLimited("too many requests (RATE_LIMIT) or too many wrong API keys; try again later"),
}
_RETRY_AFTER = {RateLimited.code: "$again", StillLoading.code: "1"}


def _quoted(path: object) -> str:
    """As one word of a configuration, whatever is in it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _answer(status: int, error: AviaryError) -> str:
    shown = status if error is _ERRORS.get(status) else error.status
    after = _RETRY_AFTER.get(error.code)
    again = f"add_header Retry-After {after} always; " if after else ""
    text = json.dumps(responses.to_json(error))
    # A refused request's body is not read: what else came on its connection would be lost with it, so clients are told.
    return (
        f"error_page {status} ={shown} @{status}; "
        f"location @{status} {{ keepalive_timeout 0; default_type application/json; {again}return {shown} '{text}'; }}"
    )
