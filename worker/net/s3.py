"""s3:// → a presigned https URL, so that S3 is fetched under the same limits and by the same code as anything else.

Signing needs no network. The credentials are the job's own, else the worker's BUCKET_*, else AWS's usual chain.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from worker.config import Settings
from worker.errors import FetchFailed, InputError
from worker.types import S3Access, Source

_URL_SEC = 3600


class Presigned(NamedTuple):
    url: str
    trusted: bool  # the endpoint is the operator's, so a private address is meant


def presign(source: Source, settings: Settings, *, region: str | None = None) -> Presigned:
    """A GET URL for the object. Raises InputError for a malformed location or endpoint, FetchFailed without
    credentials."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    parts = urlsplit(source.location)
    bucket, key = parts.netloc, unquote(parts.path.lstrip("/"))
    if not bucket or not key:
        raise InputError("an S3 source is written s3://bucket/key", param="source")
    access = _access(source.s3, settings)
    chain = boto3.Session(aws_access_key_id=access.key, aws_secret_access_key=access.secret)
    if chain.get_credentials() is None:
        raise FetchFailed(
            "no S3 credentials: set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY (or AWS's own variables), "
            "or send s3Config with the job",
            retryable=False,
        )
    style = Config(signature_version="s3v4", s3={"addressing_style": "path" if access.endpoint else "virtual"})
    region = region or chain.region_name or "us-east-1"
    try:
        client = chain.client("s3", endpoint_url=access.endpoint, region_name=region, config=style)
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_URL_SEC)
    except (ValueError, BotoCoreError) as error:
        raise InputError(
            f"the bucket's name or endpoint cannot be used: {' '.join(str(error).split())}", param="source"
        ) from error
    return Presigned(url, trusted=access.trusted)


def _access(job: S3Access | None, settings: Settings) -> S3Access:
    if job is not None and job.key and job.secret:
        return job
    return S3Access(
        settings.bucket_endpoint_url, settings.bucket_access_key_id, settings.bucket_secret_access_key, trusted=True
    )
