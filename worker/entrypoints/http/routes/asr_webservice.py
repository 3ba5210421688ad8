"""The routes of whisper-asr-webservice, for the tools that speak to it, such as Bazarr.

POST /asr                a form with `audio_file`; the options stand in the query; the answer is text/plain
POST /detect-language    the same form; the language of the first 30 seconds

With `encode=false`, the file is 16-bit PCM, 16 kHz, mono, unless it is a WAV file. Parameters of the query that a route
does not know are ignored, as there: tools add their own, such as `video_file`. What the options could not change is in
the header `Aviary-Warning`, percent-encoded.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tempfile
import urllib.parse
from typing import Annotated, BinaryIO, cast

from fastapi import APIRouter, Query
from fastapi.requests import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from worker.audio import wav
from worker.entrypoints.http.body import Body, RequestBody
from worker.entrypoints.http.openapi import FILE, WORK, beside_text, body, failures
from worker.entrypoints.http.response_models import DetectedLanguage
from worker.entrypoints.http.service import Service
from worker.errors import RequestError
from worker.faults import disk_errors
from worker.protocol import asr_webservice
from worker.protocol.model_names import find_model
from worker.protocol.work import Inference

ENGINE = "aviary"  # what the header Asr-Engine says
_FIELD = "audio_file"
_FORM = body(form={_FIELD: FILE}, required=(_FIELD,))
_WIDEST = 0xFFFFFFFF - 36  # bytes, as a WAV header can state them

Encode = Annotated[bool, Query(description="`false`: the file is 16-bit PCM, 16 kHz, mono, or WAV")]
Model = Annotated[str | None, Query(description="an alias or id of GET /v1/models; default: the server's model")]


def router(service: Service) -> APIRouter:
    """Return the routes on one service."""
    routes = APIRouter(tags=["whisper-asr-webservice"])

    @routes.post(
        "/asr",
        summary="Transcribe or translate an upload",
        response_class=PlainTextResponse,
        responses=beside_text(*WORK),
        openapi_extra=_FORM,
    )
    async def asr(
        http: Request,
        sent: RequestBody,
        task: asr_webservice.AsrTask = "transcribe",
        language: str | None = None,
        initial_prompt: str | None = None,
        output: asr_webservice.Output = "txt",
        *,
        encode: Encode = True,
        vad_filter: bool = False,
        word_timestamps: bool = False,
        diarize: bool = False,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        model: Model = None,
    ) -> Response:
        name, filename = await _audio(sent, encode=encode)
        query = asr_webservice.Query(
            task=task,
            language=language,
            initial_prompt=initial_prompt,
            vad_filter=vad_filter,
            word_timestamps=word_timestamps,
            diarize=diarize,
            min_speakers=min_speakers,
            max_speakers=max_speakers,
            output=output,
            model=model or None,
        )
        is_dry = service.settings.skip_model_load and not model
        row = None if is_dry else find_model(model or None, service.settings)
        payload, ignored = asr_webservice.transcription(query, row, service.settings)
        answer = await service.one(http, payload | {"audio": name}, sent.files)
        (result,) = answer["results"]
        warnings = [*ignored, *([result["warning"]] if "warning" in result else [])]
        headers = {
            "Asr-Engine": ENGINE,
            "Content-Disposition": f'attachment; filename="{urllib.parse.quote(filename)}.{output}"',
        }
        if warnings:
            headers["Aviary-Warning"] = urllib.parse.quote("; ".join(warnings), safe=" ,;:/()'=")
        return PlainTextResponse(asr_webservice.text(result, query), headers=headers)

    @routes.post(
        "/detect-language",
        summary="The language that is spoken in an upload",
        response_model=DetectedLanguage,
        responses=failures(*WORK),
        openapi_extra=_FORM,
    )
    async def detect_language(
        http: Request, sent: RequestBody, *, encode: Encode = True, model: Model = None
    ) -> Response:
        name, _filename = await _audio(sent, encode=encode)
        asr_webservice.detection(find_model(model or None, service.settings))
        payload = {"audio": name} | ({"model": model} if model else {})
        work = await service.prepare(http, payload, sent.files)
        assert isinstance(work, Inference)  # the payload has no other task
        answer = await service.complete(http, asr_webservice.first_seconds(work))
        return JSONResponse(asr_webservice.language(answer["results"][0]))

    return routes


async def _audio(sent: Body, *, encode: bool) -> tuple[str, str]:
    """Return the value that names the upload in a payload, and the client's name for it. Raises RequestError.

    Samples without a header are replaced by a WAV file of them.
    """
    if unknown := sent.fields.keys() - {_FIELD}:
        raise RequestError(
            f"{min(unknown)} is not a field of this form: send the options in the query", param=min(unknown)
        )
    file, filename = sent.upload(_FIELD)
    name: str = sent.fields[_FIELD]
    if not encode:
        sent.files[name] = await asyncio.to_thread(_wrapped, file)
        if sent.files[name] is not file:
            file.close()
    return name, filename


def _wrapped(file: BinaryIO) -> BinaryIO:
    """Return a WAV file of raw samples, or the file itself if it has a header or no samples. Raises DiskFull."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    is_wav = file.read(4) == b"RIFF"
    file.seek(0)
    if is_wav or not size:
        return file
    header = wav.header(min(size - size % 2, _WIDEST))
    if isinstance(file, io.BytesIO):
        return io.BytesIO(header + file.getvalue())
    with disk_errors():
        wrapped = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  the body closes it
        try:
            wrapped.write(header)
            shutil.copyfileobj(file, wrapped, 1 << 20)
            wrapped.flush()
        except BaseException:
            wrapped.close()
            raise
    return wrapped
