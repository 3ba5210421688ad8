"""The check behind the image's HEALTHCHECK: `python healthcheck.py PORT` exits with 0 if the container is healthy.

    nothing listens on the port     healthy: the container runs the Runpod handler or a command, which has no port
    a response below 500            healthy
    a response from 500 on          not healthy: /health/live reports a lost device
    no response within TIMEOUT_SEC  not healthy: the server hangs

A container whose server has exited needs no check, because it has stopped. The check runs every 30 s, so this file is
run by its path and imports nothing of the worker.
"""

from __future__ import annotations

import http.client
import sys

TIMEOUT_SEC = 10


def healthy(port: int) -> bool:
    """Return whether the server on this port of the loopback address responds, or no server listens there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SEC)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status < 500
    except ConnectionRefusedError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not healthy(int(sys.argv[1])))
