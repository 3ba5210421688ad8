"""OpenAI's files and batches, on the stored jobs.

    POST /v1/files                  a form with `file`, `purpose`, `expires_after`
    GET  /v1/files, /v1/files/{id}, /v1/files/{id}/content; DELETE /v1/files/{id}
    POST /v1/batches                `input_file_id`, `endpoint`, `completion_window`, `metadata`, `output_expires_after`
    GET  /v1/batches, /v1/batches/{id}; POST /v1/batches/{id}/cancel

`worker.entrypoints.http.batch_runner` runs the batches.
"""

from __future__ import annotations

import asyncio
from typing import Any, BinaryIO

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse, Response

from worker.entrypoints.http.body import RequestBody
from worker.entrypoints.http.callers import Caller, SentBy
from worker.entrypoints.http.job_queue import JobQueue
from worker.entrypoints.http.openapi import FILE_FORM, NEW_BATCH, STORED, also, body, failures
from worker.entrypoints.http.response_models import BatchObject, BatchPage, FileDeleted, FileObject, FilePage
from worker.entrypoints.http.responses import large_json
from worker.entrypoints.http.service import Service
from worker.errors import BatchNotFound, FileNotFound, RequestError, WrongJobState
from worker.jobs.records import Batch, StoredFile
from worker.protocol import openai_batch

Json = dict[str, Any]

MOST_FILES, MOST_BATCHES = 10_000, 100  # in one page, as on OpenAI's API
BATCHES = 20
_BODY = (400, 401, 408, 413, 415, 429, 503, 507)
_CONTENT: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def router(service: Service, queue: JobQueue) -> APIRouter:
    """Return the routes on one service and its jobs."""
    routes = APIRouter(tags=["Batches"])
    shelf = _Shelf(service, queue)
    files, batches = queue.store.files, queue.store.batches

    @routes.post(
        "/v1/files",
        summary="Upload a file for a batch",
        response_model=FileObject,
        responses=failures(*_BODY),
        openapi_extra=body(form=FILE_FORM, required=("purpose",)),
    )
    async def upload(sent: RequestBody, caller: SentBy) -> Response:
        file, filename = sent.upload("file")
        return JSONResponse(await asyncio.to_thread(shelf.upload, file, filename, sent.fields, caller))

    @routes.get("/v1/files", summary="The files", response_model=FilePage, responses=failures(400, *STORED))
    async def listed(
        caller: SentBy,
        after: str | None = None,
        limit: int = MOST_FILES,
        order: str = "desc",
        purpose: str | None = None,
    ) -> Response:
        if order not in ("asc", "desc"):
            raise RequestError("order must be asc or desc", param="order")
        _check(limit, MOST_FILES)

        def read() -> Json:
            found = files.recent(
                owner=caller.sees_jobs_of,
                purpose=purpose,
                after=None if after is None else shelf.file(after, caller, "after").number,
                limit=limit + 1,
                ascending=order == "asc",
            )
            return openai_batch.page(list(map(openai_batch.file_json, found[:limit])), has_more=len(found) > limit)

        return await large_json(read)

    @routes.get("/v1/files/{name}", summary="A file", response_model=FileObject, responses=failures(*STORED))
    async def one(name: str, caller: SentBy) -> Response:
        return JSONResponse(openai_batch.file_json(await asyncio.to_thread(shelf.file, name, caller)))

    @routes.get(
        "/v1/files/{name}/content",
        summary="The bytes of a file",
        response_class=Response,
        responses=also(_CONTENT, *STORED),
    )
    async def content(name: str, caller: SentBy) -> Response:
        return await asyncio.to_thread(shelf.content, name, caller)

    @routes.delete(
        "/v1/files/{name}", summary="Delete a file", response_model=FileDeleted, responses=failures(*STORED, 507)
    )
    async def delete(name: str, caller: SentBy) -> Response:
        def remove() -> str:
            file = shelf.file(name, caller)
            files.delete(file.id)
            return file.id

        return JSONResponse({"id": await asyncio.to_thread(remove), "object": "file", "deleted": True})

    @routes.post(
        "/v1/batches",
        summary="Run the lines of a file",
        response_model=BatchObject,
        responses=failures(404, *_BODY),
        openapi_extra=body(json=NEW_BATCH, required=("input_file_id", "endpoint", "completion_window")),
    )
    async def create(sent: RequestBody, caller: SentBy) -> Response:
        new = openai_batch.new_batch(sent.fields, service.settings.jobs_keep_sec)
        return JSONResponse(openai_batch.batch_json(await asyncio.to_thread(shelf.submit, new, caller)))

    @routes.get("/v1/batches", summary="The batches", response_model=BatchPage, responses=failures(400, *STORED))
    async def newest(caller: SentBy, after: str | None = None, limit: int = BATCHES) -> Response:
        _check(limit, MOST_BATCHES)

        def read() -> Json:
            found = batches.recent(
                owner=caller.sees_jobs_of,
                after=None if after is None else shelf.batch(after, caller, "after").number,
                limit=limit + 1,
            )
            return openai_batch.page(list(map(openai_batch.batch_json, found[:limit])), has_more=len(found) > limit)

        return await large_json(read)

    @routes.get("/v1/batches/{name}", summary="A batch", response_model=BatchObject, responses=failures(*STORED))
    async def batch(name: str, caller: SentBy) -> Response:
        return JSONResponse(openai_batch.batch_json(await asyncio.to_thread(shelf.batch, name, caller)))

    @routes.post(
        "/v1/batches/{name}/cancel",
        summary="Cancel a batch",
        response_model=BatchObject,
        responses=failures(400, *STORED, 429, 507),
    )
    async def cancel(name: str, caller: SentBy) -> Response:
        return JSONResponse(openai_batch.batch_json(await asyncio.to_thread(shelf.cancel, name, caller)))

    return routes


class _Shelf:
    """The files and batches that a caller may see. Every method blocks on the database or the disk."""

    def __init__(self, service: Service, queue: JobQueue) -> None:
        self._settings, self._store, self._runner = service.settings, queue.store, queue.batches

    def upload(self, file: BinaryIO, filename: str, fields: Json, caller: Caller) -> Json:
        """Store a file. Raises RequestError, DiskFull."""
        purpose = openai_batch.purpose_of(fields)
        keep_sec = openai_batch.keep_sec_of(fields, "expires_after", self._settings.jobs_keep_sec)
        upload = self._store.keep(file)
        try:
            stored = self._store.files.add(
                upload,
                filename=filename,
                purpose=purpose,
                owner=caller.owner,
                keep_sec=keep_sec,
                most_bytes=self._settings.jobs_max_bytes,
            )
        except BaseException:
            self._store.upload_path(upload).unlink(missing_ok=True)
            raise
        return openai_batch.file_json(stored)

    def file(self, name: str, caller: Caller, param: str = "id") -> StoredFile:
        """Return a file. Raises FileNotFound, also if the caller may not see the file."""
        found = self._store.files.find(name)
        if found is None or not caller.may_see(found):
            raise FileNotFound(f"there is no file {name[:64]!r}; GET /v1/files lists your files", param=param)
        return found

    def content(self, name: str, caller: Caller) -> Response:
        """Return a response with the bytes of a file. Raises FileNotFound."""
        file = self.file(name, caller)
        path = self._store.files.path(file)
        try:
            status = path.stat()
        except FileNotFoundError:
            raise FileNotFound(f"the file {name!r} was removed from the disk; upload it again", param="id") from None
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename, stat_result=status)

    def submit(self, new: openai_batch.NewBatch, caller: Caller) -> Batch:
        """Store a batch. Raises FileNotFound, and RequestError for a file of another purpose."""
        file = self.file(new.input_file_id, caller, "input_file_id")
        if file.purpose != "batch":
            raise RequestError(
                f"input_file_id is a file with the purpose {file.purpose}: upload it with the purpose batch",
                param="input_file_id",
            )
        batch = self._store.batches.submit(
            owner=caller.owner,
            endpoint=new.endpoint,
            input_file_id=file.id,
            input_upload=file.upload,
            metadata=new.metadata,
            window_sec=openai_batch.WINDOW_SEC,
            output_keep_sec=new.keep_sec,
        )
        self._runner.wake()
        return batch

    def batch(self, name: str, caller: Caller, param: str = "id") -> Batch:
        """Return a batch. Raises BatchNotFound, also if the caller may not see the batch."""
        found = self._store.batches.find(name)
        if found is None or not caller.may_see(found):
            raise BatchNotFound(f"there is no batch {name[:64]!r}; GET /v1/batches lists your batches", param=param)
        return found

    def cancel(self, name: str, caller: Caller) -> Batch:
        """Cancel a batch, and return it. Raises BatchNotFound, and WrongJobState if the batch ends or has ended."""
        before = self.batch(name, caller)
        canceled = self._store.batches.cancel(before.id)
        self._runner.wake()
        batch = self.batch(name, caller)
        if not canceled and batch.status != "cancelling":
            raise WrongJobState(f"the batch is {batch.status}: only a batch that runs can be canceled")
        return batch


def _check(limit: int, most: int) -> None:
    if not 1 <= limit <= most:
        raise RequestError(f"limit must be 1 to {most}", param="limit")
