"""S3 through presigned URLs: read `s3://` sources, and store results that do not fit into a response.

    presign(source, settings)    s3://bucket/key ──▶ an https URL to GET, valid for one hour
    Bucket(settings, job).put    bytes ──▶ the bucket ──▶ an https URL to GET, valid for seven days

Signing needs no network. Every transfer goes over plain HTTP through `worker.net.safe_http` (uploads here, downloads in
`worker.audio.fetch`), so S3 obeys the same limits and address checks as any other URL.

Credentials come from the job's `s3Config` if it is complete, else from the settings `BUCKET_*`; reading also falls back
to the AWS credential chain (environment variables, profiles, container roles). The chain asks the metadata service of
an EC2 instance only if AWS_EC2_METADATA_DISABLED is false, and uses no proxy of the environment. With the worker's own
credentials, ALLOWED_BUCKETS limits the buckets that are read. boto3 is imported on first use.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from worker.config import Settings
from worker.errors import AviaryError, FetchFailed, InputError, NoBucket, SourceForbidden
from worker.types import S3Access, Source

Keys = dict[str, str | None]  # arguments of boto3.client

GET_SOURCE_SEC = 3600
GET_RESULT_SEC = 7 * 24 * 3600  # the longest that AWS allows
PUT_RESULT_SEC = 3600
CHECK_SEC = 60

_CREATING = threading.Lock()  # held while a client is created: boto3's default session is not thread-safe


class Presigned(NamedTuple):
    """A presigned URL. `trusted`: the operator chose the endpoint, so a private address is allowed."""

    url: str
    trusted: bool


def presign(source: Source, settings: Settings, *, region: str | None = None) -> Presigned:
    """Return a URL to GET the object that `source` names, valid for one hour.

    `region` is the bucket's AWS region, if a previous response reported it; by default the region comes from the AWS
    configuration, else it is us-east-1.

    Raises: InputError if the location or the endpoint is malformed; FetchFailed if there are no credentials, or if the
    AWS chain fails; SourceForbidden if ALLOWED_BUCKETS does not list the bucket.
    """
    parts = urlsplit(source.location)
    bucket, key = parts.netloc, unquote(parts.path.lstrip("/"))
    if not bucket or not key:
        raise InputError("an S3 source must have the form s3://bucket/key", param="source")
    access = source.s3 if source.s3 and _has_keys(source.s3) else _of_settings(settings)
    if access.trusted and settings.allowed_buckets and bucket not in settings.allowed_buckets:
        raise SourceForbidden(
            f"this worker may not read the bucket {bucket[:64]!r} with its own credentials (ALLOWED_BUCKETS). Name "
            "another bucket, or send s3Config with the job."
        )
    keys = _keys(access) if _has_keys(access) else _aws_keys(settings)
    refuse = functools.partial(InputError, param="source")
    params = {"Bucket": bucket, "Key": key}
    url = _sign(access.endpoint, keys, "get_object", params, GET_SOURCE_SEC, refuse, region=region)
    return Presigned(url, trusted=access.trusted)


class Bucket:
    """The bucket that results are stored in: the job's own if `job` is complete, else the bucket that `BUCKET_*` names.

    The endpoint of a job's bucket comes from outside, so it must have a public address unless ALLOW_PRIVATE_URLS is
    set.
    """

    def __init__(self, settings: Settings, job: S3Access | None = None) -> None:
        self._access = job if job and _is_complete(job) else _of_settings(settings)
        self._allow_private = self._access.trusted or settings.allow_private_urls

    @property
    def configured(self) -> bool:
        """Whether a bucket name, a key and a secret are set."""
        return _is_complete(self._access)

    def put(self, name: str, data: bytes, content_type: str) -> str:
        """Store `data` under a new key that ends in `name`, and return a URL to GET it, valid for seven days.

        Raises: NoBucket if no bucket is configured or its name or endpoint is malformed; SourceForbidden if the
        endpoint's address is not public; FetchFailed if the upload fails.
        """
        key = f"aviary/{uuid.uuid4().hex}/{name}"
        url = self._sign("put_object", PUT_RESULT_SEC, Key=key, ContentType=content_type)
        failure = f"the bucket did not accept {name}"
        self._send("PUT", url, failure, timeout=120, data=data, headers={"Content-Type": content_type})
        return self._sign("get_object", GET_RESULT_SEC, Key=key)

    def check(self) -> None:
        """Check that the bucket exists and that the credentials may use it.

        Raises: the errors of `put`.
        """
        self._send("HEAD", self._sign("head_bucket", CHECK_SEC), "the bucket cannot be used", timeout=10)

    def _sign(self, operation: str, valid_sec: int, **params: str) -> str:
        if not self.configured:
            raise NoBucket(
                "no bucket is configured to store the result in: set BUCKET_NAME, BUCKET_ACCESS_KEY_ID and "
                "BUCKET_SECRET_ACCESS_KEY (and BUCKET_ENDPOINT_URL unless it is AWS), or send s3Config with the job"
            )
        params["Bucket"] = str(self._access.bucket)
        return _sign(self._access.endpoint, _keys(self._access), operation, params, valid_sec, NoBucket)

    def _send(self, method: str, url: str, failure: str, **options: Any) -> None:
        """Send one request and discard the response. `failure` begins the message of a FetchFailed."""
        import requests

        from worker.net import safe_http

        try:
            with safe_http.session(allow_private=self._allow_private) as session:
                session.request(method, url, allow_redirects=False, **options).raise_for_status()
        except safe_http.PrivateAddress as error:
            raise SourceForbidden("the address of the bucket's endpoint is not public (ALLOW_PRIVATE_URLS)") from error
        except requests.exceptions.HTTPError as error:
            raise FetchFailed(f"{failure}: HTTP {error.response.status_code}") from error
        except requests.exceptions.RequestException as error:
            raise FetchFailed(f"{failure}: {type(error).__name__}") from error


def _has_keys(access: S3Access) -> bool:
    return bool(access.key and access.secret)


def _is_complete(access: S3Access) -> bool:
    return bool(access.bucket and _has_keys(access))


def _of_settings(settings: Settings) -> S3Access:
    return S3Access(
        settings.bucket_endpoint_url,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
        settings.bucket_name,
        trusted=True,
    )


def _keys(access: S3Access) -> Keys:
    return {"aws_access_key_id": access.key, "aws_secret_access_key": access.secret}


def _aws_keys(settings: Settings) -> Keys:
    """Return the credentials of the AWS chain, read anew. Raises: FetchFailed if there are none or the chain fails."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        credentials = _aws_session(settings).get_credentials()
        found = credentials and credentials.get_frozen_credentials()
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise FetchFailed(
            f"the AWS credentials of this worker cannot be read ({type(error).__name__}). Check the AWS variables and "
            "profile, set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY, or send s3Config with the job."
        ) from error
    if found is None:
        raise FetchFailed(
            "no S3 credentials: set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY (or the AWS variables), "
            "or send s3Config with the job. The role of an EC2 instance requires AWS_EC2_METADATA_DISABLED=false.",
            retryable=False,
        )
    return {
        "aws_access_key_id": found.access_key,
        "aws_secret_access_key": found.secret_key,
        "aws_session_token": found.token,
    }


def _aws_session(settings: Settings) -> Any:
    """Return a botocore session whose credential chain uses no proxy and, unless asked to, no metadata service."""
    from botocore.config import Config
    from botocore.httpsession import URLLib3Session
    from botocore.session import Session

    session = Session()
    session.set_default_client_config(Config(proxies={}))  # None would stand for the proxies of the environment
    chain = session.get_component("credential_provider")
    fetcher = chain.get_provider("iam-role")._role_fetcher
    fetcher._session = URLLib3Session(timeout=fetcher._timeout, proxies={})
    if settings.aws_ec2_metadata_disabled:
        chain.remove("iam-role")
    return session


def _sign(
    endpoint: str | None,
    keys: Keys,
    operation: str,
    params: dict[str, str],
    valid_sec: int,
    refuse: Callable[[str], AviaryError],
    *,
    region: str | None = None,
) -> str:
    """Return a presigned URL for one operation, signed with `keys`.

    AWS gets the bucket in the host name ("virtual"), which reaches the bucket's region without a redirect; any other
    endpoint gets the bucket in the path, because few of them resolve a host name for each bucket. `refuse` makes the
    error for a malformed bucket name or endpoint.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "virtual"},
        defaults_mode="legacy",  # "auto" would ask the metadata service for the region
    )
    try:
        with _CREATING:
            client = boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config, **keys)
        return str(client.generate_presigned_url(operation, Params=params, ExpiresIn=valid_sec))
    except (ValueError, BotoCoreError) as error:
        reason = " ".join(str(error).split())
        raise refuse(f"the bucket's name or endpoint cannot be used: {reason}") from error
