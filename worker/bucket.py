"""S3, for what does not fit into an answer: put bytes, get a presigned URL that works for seven days.

The bucket is the job's own (`s3Config`), else the worker's (`BUCKET_*`). boto3 is imported on first use.
"""
from __future__ import annotations

import uuid

from worker.config import Settings
from worker.errors import AviaryError, FetchFailed
from worker.types import S3Access

URL_SEC = 7 * 24 * 3600


class NoBucket(AviaryError):
    """Something is to be stored and no bucket is configured."""

    code = "no_bucket"
    status = 400


class Bucket:
    def __init__(self, settings: Settings, job: S3Access | None = None) -> None:
        self._access = job or S3Access(settings.bucket_endpoint_url, settings.bucket_access_key_id,
                                       settings.bucket_secret_access_key, settings.bucket_name, trusted=True)

    @property
    def configured(self) -> bool:
        return bool(self._access.bucket and self._access.key and self._access.secret)

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Stores the bytes under a fresh key and returns a presigned URL. Raises NoBucket, FetchFailed."""
        if not self.configured:
            raise NoBucket("nothing to store it in: set BUCKET_NAME, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY (and "
                           "BUCKET_ENDPOINT_URL), or send s3Config with the job")
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        access = self._access
        style = Config(signature_version="s3v4", s3={"addressing_style": "path" if access.endpoint else "auto"})
        client = boto3.client("s3", endpoint_url=access.endpoint, aws_access_key_id=access.key,
                              aws_secret_access_key=access.secret, config=style)
        key = f"aviary/{uuid.uuid4().hex}/{name}"
        try:
            client.put_object(Bucket=access.bucket, Key=key, Body=data, ContentType=content_type)
            where = {"Bucket": access.bucket, "Key": key}
            return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=URL_SEC))
        except (BotoCoreError, ClientError) as error:
            raise FetchFailed(f"the bucket did not take {name}: {type(error).__name__}") from error
