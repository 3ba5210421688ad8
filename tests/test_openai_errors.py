"""Every error that a server can respond with, as OpenAI's own client sees it on /v1, and its status on other routes.

The table is committed, so that a change of what clients see is a change of this file.
"""

from __future__ import annotations

import httpx
import openai
import pytest
from conftest import tone
from serving import serving

from worker import errors
from worker.config import Settings
from worker.entrypoints.tasks import Tasks
from worker.errors import AviaryError

pytestmark = pytest.mark.slow

WEEK = "samples/week.wav"
INVALID, RATE, SERVER = "invalid_request_error", "requests", "server_error"

# The error: its code; its status, type and exception on /v1; its status on the other routes.
TABLE = {
    "RequestError": ("invalid_request", 400, INVALID, openai.BadRequestError, 400),
    "ModelNotFound": ("model_not_found", 404, INVALID, openai.NotFoundError, 404),
    "Unsupported": ("unsupported", 400, INVALID, openai.BadRequestError, 400),
    "ClipNotFound": ("clip_not_found", 404, INVALID, openai.NotFoundError, 404),
    "TooManyInputs": ("too_many_inputs", 413, INVALID, openai.APIStatusError, 413),
    "JobNotFound": ("job_not_found", 404, INVALID, openai.NotFoundError, 404),
    "FileNotFound": ("file_not_found", 404, INVALID, openai.NotFoundError, 404),
    "BatchNotFound": ("batch_not_found", 404, INVALID, openai.NotFoundError, 404),
    "WrongJobState": ("job_state", 400, INVALID, openai.BadRequestError, 400),
    "NotReadable": ("invalid_request", 415, INVALID, openai.APIStatusError, 415),
    "Unauthorized": ("invalid_api_key", 401, INVALID, openai.AuthenticationError, 401),
    "ModelInUse": ("model_in_use", 409, INVALID, openai.ConflictError, 409),
    "NotPermitted": ("insufficient_permissions", 403, INVALID, openai.PermissionDeniedError, 403),
    "Forbidden": ("forbidden", 403, INVALID, openai.PermissionDeniedError, 403),
    "BodyTimeout": ("body_timeout", 408, INVALID, openai.APIStatusError, 408),
    "HeadTooLarge": ("head_too_large", 431, INVALID, openai.APIStatusError, 431),
    "Busy": ("internal_error", 503, SERVER, openai.InternalServerError, 503),
    "RateLimited": ("rate_limit_exceeded", 429, RATE, openai.RateLimitError, 429),
    "QueueFull": ("queue_full", 429, RATE, openai.RateLimitError, 429),
    "TooManyConnections": ("too_many_connections", 503, SERVER, openai.InternalServerError, 503),
    "StillLoading": ("model_loading", 503, SERVER, openai.InternalServerError, 503),
    "DeadlineExceeded": ("deadline_exceeded", 503, SERVER, openai.InternalServerError, 503),
    "InputError": ("invalid_input", 400, INVALID, openai.BadRequestError, 400),
    "SourceForbidden": ("source_forbidden", 400, INVALID, openai.BadRequestError, 400),
    "SourceNotFound": ("source_not_found", 400, INVALID, openai.BadRequestError, 404),
    "FetchFailed": ("fetch_failed", 400, INVALID, openai.BadRequestError, 422),
    "TooLarge": ("too_large", 413, INVALID, openai.APIStatusError, 413),
    "TooLong": ("too_long", 400, INVALID, openai.BadRequestError, 413),
    "DecodeFailed": ("decode_failed", 400, INVALID, openai.BadRequestError, 415),
    "EmptyAudio": ("empty_audio", 400, INVALID, openai.BadRequestError, 422),
    "ModelError": ("model_error", 500, SERVER, openai.InternalServerError, 500),
    "ModelUnavailable": ("model_unavailable", 503, SERVER, openai.InternalServerError, 503),
    "OutOfMemory": ("out_of_memory", 503, SERVER, openai.InternalServerError, 503),
    "DeviceLost": ("device_lost", 503, SERVER, openai.InternalServerError, 503),
    "ReferenceFailed": ("reference_failed", 500, SERVER, openai.InternalServerError, 500),
    "ResultTooLarge": ("result_too_large", 413, INVALID, openai.APIStatusError, 413),
    "StoreError": ("store_unavailable", 503, SERVER, openai.InternalServerError, 503),
    "DiskFull": ("disk_full", 507, SERVER, openai.InternalServerError, 507),
    "ConfigError": ("config_error", 500, SERVER, openai.InternalServerError, 500),
    "FfmpegMissing": ("ffmpeg_missing", 500, SERVER, openai.InternalServerError, 500),
    "NoBucket": ("no_bucket", 400, INVALID, openai.BadRequestError, 400),
    "WorkerLost": ("worker_lost", 503, SERVER, openai.InternalServerError, 503),
    "Cancelled": ("cancelled", 503, SERVER, openai.InternalServerError, 503),
    "ServerUnreachable": ("server_unreachable", 503, SERVER, openai.InternalServerError, 503),
    "InternalError": ("internal_error", 500, SERVER, openai.InternalServerError, 500),
}
NO_ANSWER = {
    "AviaryError": "the root",
    "JobFailed": "the Python client raises it",
    "EmptyBuffer": "an event of a realtime session",
}


def subclasses(kind: type[AviaryError]) -> set[str]:
    """The names of a class and of all below it that are in the tree: tests define others."""
    own = {kind.__name__} if kind.__module__ == errors.__name__ else set()
    return own.union(*map(subclasses, kind.__subclasses__()))


def test_the_table_has_every_error():
    assert {*TABLE, *NO_ANSWER} == subclasses(AviaryError)


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A server on which a request fails with the error that its prompt names."""
    prepare = Tasks.prepare

    def fail(self, fields, **options):
        if kind := getattr(errors, fields.get("prompt") or "", None):
            raise kind("this is what is wrong")
        return prepare(self, fields, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tasks, "prepare", fail)
        with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
            yield client(url)


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def transcribe(server: openai.OpenAI, file=None, **options):
    with open(WEEK, "rb") as week:
        return server.audio.transcriptions.create(file=file or week, **{"model": "whisper"} | options)


def seen(failure: openai.APIStatusError) -> tuple:
    assert failure.body.keys() == {"message", "type", "param", "code"}
    return failure.code, failure.status_code, failure.type, type(failure)


@pytest.mark.parametrize("name", TABLE)
def test_openai_s_client_raises_the_exception_of_the_table(failing, name):
    *expected, elsewhere = TABLE[name]
    for streams in (False, True):
        with pytest.raises(openai.APIStatusError, match="this is what is wrong") as caught:
            transcribe(failing, prompt=name, stream=streams)
        assert seen(caught.value) == tuple(expected)
    url = str(failing.base_url).removesuffix("v1/")
    plain = httpx.post(f"{url}transcribe", json={"model": "whisper", "prompt": name, "paths": [WEEK]})
    assert (plain.status_code, plain.json()["error"]["code"]) == (elsewhere, expected[0])


def test_what_really_goes_wrong_is_in_the_table(tmp_path):
    """The situations that a client can bring about, without a stand-in for the failure."""
    settings = Settings(
        skip_model_load=True, data_dir=tmp_path, max_audio_sec=5, max_audio_bytes=100_000, allowed_paths=(tmp_path,)
    )
    long, large = tone(tmp_path / "long.wav", 6, rate=8000), tone(tmp_path / "large.wav", 60)
    outside = {"file": "/etc/hostname"}
    with serving(settings) as url:
        server = client(url)
        situations = {
            "ModelNotFound": lambda: transcribe(server, model="nobody/nothing"),
            "Unsupported": lambda: transcribe(server, model="parakeet", prompt="words"),
            "RequestError": lambda: transcribe(server, extra_body={"colour": "red"}),
            "DecodeFailed": lambda: transcribe(server, b"no audio at all" * 100),
            "EmptyAudio": lambda: transcribe(server, ("a.wav", b"")),
            "TooLong": lambda: transcribe(server, long.open("rb")),
            "TooLarge": lambda: transcribe(server, large.open("rb")),
            "SourceForbidden": lambda: server.post("/audio/transcriptions", body=outside, cast_to=object),
            "SourceNotFound": lambda: server.post(
                "/audio/transcriptions", body={"file": str(tmp_path / "none.wav")}, cast_to=object
            ),
            "FetchFailed": lambda: server.post(
                "/audio/transcriptions", body={"file": "https://nowhere.invalid/a.wav"}, cast_to=object
            ),
        }
        for name, ask in situations.items():
            with pytest.raises(openai.APIStatusError) as caught:
                ask()
            assert seen(caught.value) == TABLE[name][:4], name


def test_keys_rates_and_origins_are_in_the_table(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key="k", rate_limit="1/minute")) as url:
        for key, name in (("wrong", "Unauthorized"), ("k", None), ("k", "RateLimited")):
            if name is None:
                assert transcribe(client(url, key)).text
                continue
            with pytest.raises(openai.APIStatusError) as caught:
                transcribe(client(url, key))
            assert seen(caught.value) == TABLE[name][:4], name
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        with pytest.raises(openai.APIStatusError) as caught:
            transcribe(client(url), extra_headers={"Origin": "https://example.org"})
        assert seen(caught.value) == TABLE["Forbidden"][:4]
