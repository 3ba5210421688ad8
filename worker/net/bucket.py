"""S3, for what does not fit into an answer: put bytes, get a presigned URL that works for seven days.

Signing needs no network; the upload itself goes through the same guard as downloads do.
The bucket is the job's own (`s3Config`), else the worker's (`BUCKET_*`). boto3 is imported on first use.
"""

from __future__ import annotations

import uuid
from typing import Any

from worker.config import Settings
from worker.errors import FetchFailed, NoBucket, SourceForbidden
from worker.types import S3Access

URL_SEC = 7 * 24 * 3600


class Bucket:
    """`job`: the job's own bucket, used when it names one whole; its endpoint, like any URL from outside, must be
    public."""

    def __init__(self, settings: Settings, job: S3Access | None = None) -> None:
        mine = S3Access(
            settings.bucket_endpoint_url,
            settings.bucket_access_key_id,
            settings.bucket_secret_access_key,
            settings.bucket_name,
            trusted=True,
        )
        self._access = job if job and job.bucket and job.key and job.secret else mine
        self._allow_private = self._access.trusted or settings.allow_private_urls

    @property
    def configured(self) -> bool:
        return bool(self._access.bucket and self._access.key and self._access.secret)

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores the bytes under a fresh key and returns a presigned URL. Raises NoBucket, FetchFailed,
        SourceForbidden."""
        where = {"Key": f"aviary/{uuid.uuid4().hex}/{name}"}
        upload = self._presigned("put_object", 3600, **where, ContentType=content_type)
        self._ask(
            "PUT",
            upload,
            f"the bucket did not take {name}",
            timeout=120,
            data=data,
            headers={"Content-Type": content_type},
        )
        return self._presigned("get_object", URL_SEC, **where)

    def check(self) -> None:
        """Asks whether the bucket is there and lets us in. Raises as `put` does."""
        self._ask("HEAD", self._presigned("head_bucket", 60), "the bucket cannot be used", timeout=10)

    def _presigned(self, operation: str, for_sec: int, **of: str) -> str:
        if not self.configured:
            raise NoBucket(
                "nothing to store it in: set BUCKET_NAME, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY (and "
                "BUCKET_ENDPOINT_URL), or send s3Config with the job"
            )
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        access = self._access
        style = Config(signature_version="s3v4", s3={"addressing_style": "path" if access.endpoint else "auto"})
        try:
            client = boto3.client(
                "s3",
                endpoint_url=access.endpoint,
                aws_access_key_id=access.key,
                aws_secret_access_key=access.secret,
                config=style,
            )
            return str(
                client.generate_presigned_url(operation, Params={"Bucket": access.bucket, **of}, ExpiresIn=for_sec)
            )
        except (ValueError, BotoCoreError) as error:
            raise NoBucket(f"the bucket's name or endpoint cannot be used: {' '.join(str(error).split())}") from error

    def _ask(self, method: str, url: str, failed: str, **options: Any) -> None:
        import requests

        from worker.net import safe_http

        try:
            with safe_http.session(allow_private=self._allow_private) as session:
                session.request(method, url, allow_redirects=False, **options).raise_for_status()
        except safe_http.PrivateAddress as error:
            raise SourceForbidden("the bucket's endpoint is not public (ALLOW_PRIVATE_URLS)") from error
        except requests.exceptions.HTTPError as error:
            raise FetchFailed(f"{failed}: HTTP {error.response.status_code}") from error
        except requests.exceptions.RequestException as error:
            raise FetchFailed(f"{failed}: {type(error).__name__}") from error
