"""The Python client, of a server or of a Runpod endpoint.

    Client, AsyncClient    clients.py   two thin shells around one core: they send and wait, nothing else
    Calls                  calls.py     the core: each call is a generator that yields requests and reads responses
    Server, Endpoint       server.py, runpod.py   the two ways a question travels
    Transcribed ...        results.py   what comes back, typed

Errors are those of `worker.errors`, as the worker raised them. Needs httpx and numpy; of the worker, only its types
and errors.
"""

from worker.client.audio import Audio
from worker.client.clients import AsyncClient, Client
from worker.client.results import Analyzed, Answer, Captioned, Embedded, Replied, Scored, Transcribed

__all__ = [
    "Analyzed",
    "Answer",
    "AsyncClient",
    "Audio",
    "Captioned",
    "Client",
    "Embedded",
    "Replied",
    "Scored",
    "Transcribed",
]
