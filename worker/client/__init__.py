"""The Python client for a server or a Runpod endpoint.

    Client, AsyncClient    clients.py   two thin shells, blocking and awaitable: they send requests and wait
    Calls                  calls.py     the core: each call is a generator that yields requests and receives responses
    Server, Endpoint       server.py, runpod.py   the two ways to send a call
    BatchClient            batch_jobs.py   Runpod's Batch Jobs
    Transcribed, …         results.py   the typed results

Errors are those of `worker.errors`, with the code that the worker reported. The client requires httpx and numpy, and
imports neither a model library nor a server's.
"""

from worker.client.audio import Audio
from worker.client.clients import AsyncClient, Client
from worker.client.results import Analyzed, CallResult, Captioned, Diarized, Embedded, Replied, Scored, Transcribed

__all__ = [
    "Analyzed",
    "AsyncClient",
    "Audio",
    "CallResult",
    "Captioned",
    "Client",
    "Diarized",
    "Embedded",
    "Replied",
    "Scored",
    "Transcribed",
]
