"""nginx in front of the workers: where it is, and its whole configuration, made from the settings.

    find()                                   the path of nginx, or None
    configuration(settings, folder, …)       the text of nginx.conf

nginx writes only to the supervisor's folder, so it runs as any user. `upstream` lists only workers that respond: when a
worker starts or stops responding, the supervisor writes the configuration again and makes nginx reload it. Between the
end of a worker and the reload, nginx passes requests on to the next worker, up to TRIES times in all, if the first
worker has not responded.

Retrying is safe, because transcribing twice yields the same result; a job that is queued twice runs twice. The number
of tries is bounded, because the request itself might be what crashes its worker.

nginx stores a body in a file until the body is complete. It accepts bodies only on the routes that read one, and only
after /gate has accepted the key. On all other routes a body may have 1 KiB, which stays in memory.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.entrypoints.http.auth import SEND_KEY
from worker.entrypoints.http.body_limits import FORM_BYTES, ROUTES
from worker.errors import (
    AviaryError,
    BodyTimeout,
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
    "nginx was not found, so the workers share the port: requests do not go to the least busy worker, are not retried "
    "when a worker exits, and RATE_LIMIT applies to each worker separately. Install nginx (Debian and Ubuntu: "
    "apt install nginx-light; macOS: brew install nginx)."
)
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")  # not on the PATH of every user
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def find() -> Path | None:
    """Return the path of nginx, on PATH or in the usual folders, or None."""
    path = shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_PLACES))
    return Path(path) if path else None


def configuration(settings: Settings, folder: Path, sockets: Sequence[Path]) -> str:
    """Return the text of nginx.conf.

    `folder` is the supervisor's, and holds its own socket `control`. `sockets` are the Unix sockets of the workers.
    """
    gated = bool(settings.rate_limit or (settings.api_key and settings.api_key != "off"))
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    size = max(settings.max_audio_bytes + FORM_BYTES, settings.max_json_bytes)
    wait = round(settings.request_timeout_sec * 1000)
    client = round(settings.client_timeout_sec * 1000)
    upstream = "\n        ".join(f"server {_quoted(f'unix:{socket}')} max_fails=0;" for socket in sockets)
    errors = _ERRORS | (_VERDICTS if gated else {}) | ({} if sockets else {502: _NO_WORKER})
    error_pages = "\n        ".join(_error_page(status, error) for status, error in errors.items())
    files = _files()
    temporary = "\n    ".join(f"{name}_temp_path {_quoted(folder / name)};" for name in _TEMPORARY)
    return f"""\
daemon off;
pid {_quoted(folder / "nginx.pid")};
error_log stderr error;
worker_processes {min(4, os.cpu_count() or 1)};
worker_shutdown_timeout {wait + 30_000}ms;
{user}
worker_rlimit_nofile {files};
events {{ worker_connections {min(4096, files // 2)}; }}
http {{
    {temporary}
    access_log off;
    server_tokens off;
    client_header_timeout {client}ms;
    client_body_timeout {client}ms;
    send_timeout {client}ms;
    keepalive_timeout {client}ms;
    map "$request_method $http_content_length$http_transfer_encoding" $unexpected_body {{
        "~^POST " 0;
        "~ 0?$" 0;
        default 1;
    }}
    map $http_upgrade $upgrade {{ "~*^websocket$" websocket; default ""; }}
    map $upgrade $connection_header {{ "" close; default upgrade; }}
    upstream workers {{
        zone workers 256k;
        least_conn;
        {upstream or "server unix:/nowhere;"}
    }}
    upstream control {{ server {_quoted(f"unix:{folder}/control")} max_fails=0; }}
    server {{
        listen {_quoted(listen(settings))};
        client_max_body_size 1k;
        client_body_buffer_size 1k;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header Upgrade $upgrade;
        proxy_set_header Connection $connection_header;
        proxy_buffering off;
        proxy_connect_timeout 10s;
        proxy_send_timeout 60s;
        # The worker itself responds when its time is over, and then the request is not retried.
        proxy_read_timeout {wait + 30_000}ms;
        proxy_next_upstream_timeout {wait}ms;
        proxy_next_upstream error timeout invalid_header http_429 http_502 http_503 http_504 non_idempotent;
        proxy_next_upstream_tries {TRIES};
        location / {{
            {_asks(_GATE) if gated else ""}
            proxy_pass http://workers;
        }}
        location ~ "^({"|".join(map(_pattern, ROUTES))})/?\\z" {{
            client_max_body_size {size};
            client_body_buffer_size 1m;
            if ($unexpected_body) {{ return 413; }}
            {_asks(_BODY_GATE) if gated else ""}
            proxy_pass http://workers;
        }}
        location = /metrics {{ proxy_pass http://control; }}
        location = /stats {{ proxy_pass http://control; }}
        location = {_GATE} {{ {_TO_GATE} proxy_pass http://control/gate$request_uri; }}
        location = {_BODY_GATE} {{ {_TO_GATE} proxy_pass http://control/gate/body; }}
        {error_pages}
    }}
}}
"""


def listen(settings: Settings) -> str:
    """Return the address of the server in nginx's syntax: a Unix socket, or HOST and PORT."""
    if settings.audio_score_server_socket is not None:
        return f"unix:{settings.audio_score_server_socket}"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


_GATE = "/-/gate"
_BODY_GATE = "/-/body-gate"  # whose path is never open, however the client spells its own (/ui/../run)
_TO_GATE = (  # The location of the request has limited the body, and the gate does not get it.
    "internal; client_max_body_size 0; proxy_method $request_method; proxy_pass_request_body off; "
    'proxy_set_header Content-Length ""; proxy_set_header X-Forwarded-For $remote_addr;'
)
_ERROR = "/-/error/"

# The errors of nginx itself by its status. They become OpenAI's error object.
_ERRORS: dict[int, AviaryError] = {
    400: RequestError("The request is not valid HTTP."),
    408: BodyTimeout("The body did not arrive in time (CLIENT_TIMEOUT_SEC). Send the request again."),
    413: TooLarge("The body is larger than this route accepts (MAX_AUDIO_BYTES for uploads, 1 KiB on most routes)."),
    414: RequestError("The URL is too long."),
    500: InternalError("An internal error of the gateway. The log of the server has the details."),
    502: InternalError("The worker exited before responding, and every retry on another worker failed too."),
    504: DeadlineExceeded("No worker responded in time (REQUEST_TIMEOUT_SEC)."),
}
_NO_WORKER = StillLoading("No worker is ready. Try again in a moment.")
_VERDICTS: dict[int, AviaryError] = {  # the refusals of the gate
    401: Unauthorized(SEND_KEY),
    403: RateLimited("Too many requests (RATE_LIMIT) or too many wrong API keys. Try again later."),
}
_RETRY_AFTER = {RateLimited.code: "$again", StillLoading.code: "1"}


def _files() -> int:
    """Return how many files a process of nginx may open: two connections and a file for each request."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 8192 if most == resource.RLIM_INFINITY else min(8192, most)


def _pattern(route: str) -> str:
    """Return the regular expression of a route's paths."""
    return re.escape(route).replace(re.escape("{endpoint}"), "[^/]+")


def _asks(gate: str) -> str:
    return f"auth_request {gate}; auth_request_set $again $upstream_http_retry_after;"


def _quoted(path: object) -> str:
    """Return the path as one word of a configuration, with its special characters escaped."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _error_page(status: int, error: AviaryError) -> str:
    """Return the configuration that makes nginx respond with `error` in place of its own page for `status`."""
    code = status if error is _ERRORS.get(status) else error.status
    after = _RETRY_AFTER.get(error.code)
    again = f"add_header Retry-After {after} always; " if after else ""
    if isinstance(error, DeadlineExceeded):
        again += "add_header X-Should-Retry false always; "
    text = json.dumps(responses.to_json(error))
    # nginx does not read the body of a rejected request, so the connection cannot carry another request.
    # `keepalive_timeout 0` makes the response announce that the connection closes. The location has a path and not a
    # name, because nginx finds no named location for a request line that it cannot parse. `client_max_body_size 0`
    # keeps nginx from applying the limit of the body to the error page too.
    return (
        f"error_page {status} ={code} {_ERROR}{status}; location = {_ERROR}{status} {{ internal; "
        f"client_max_body_size 0; keepalive_timeout 0; default_type application/json; {again}"
        f"return {code} '{text}'; }}"
    )
