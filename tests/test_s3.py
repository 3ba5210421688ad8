"""Bytes into S3 and back by the URL given; a job's own bucket cannot make the worker reach inside."""

from __future__ import annotations

import pytest
import requests
from moto.server import ThreadedMotoServer

from worker.config import Settings
from worker.errors import FetchFailed, NoBucket, SourceForbidden
from worker.net.s3 import Bucket, presign
from worker.types import S3Access, Source


@pytest.fixture(scope="module")
def endpoint():
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    import boto3

    boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    ).create_bucket(Bucket="results")
    yield url
    running.stop()


def settings(endpoint: str, bucket: str = "results") -> Settings:
    return Settings(
        bucket_endpoint_url=endpoint, bucket_access_key_id="k", bucket_secret_access_key="s", bucket_name=bucket
    )


def test_what_is_put_comes_back_by_the_url(endpoint):
    url = Bucket(settings(endpoint)).put("result.json", b'{"a": 1}', "application/json")
    answer = requests.get(url, timeout=5)
    assert answer.json() == {"a": 1}
    assert answer.headers["content-type"] == "application/json"


def test_two_results_of_one_name_do_not_meet(endpoint):
    bucket = Bucket(settings(endpoint))
    assert bucket.put("a", b"1", "text/plain").split("?")[0] != bucket.put("a", b"2", "text/plain").split("?")[0]


def test_a_job_s_bucket_must_be_public(endpoint):
    job = S3Access(endpoint, "k", "s", "results")
    with pytest.raises(SourceForbidden, match="ALLOW_PRIVATE_URLS"):
        Bucket(Settings(), job).put("a", b"1", "text/plain")
    assert Bucket(Settings(allow_private_urls=True), job).put("a", b"1", "text/plain")


def test_a_job_s_bucket_that_is_not_whole_leaves_the_worker_s(endpoint):
    for job in (S3Access(), S3Access(endpoint, "k", None, "results"), None):
        assert Bucket(settings(endpoint), job).configured
    assert not Bucket(Settings(), S3Access(endpoint)).configured


@pytest.mark.parametrize(
    "access",
    [
        S3Access("minio:9000", "k", "s", "results"),
        S3Access("results.example", "k", "s", "results"),
        S3Access("https://s3.example", "k", "s", "no such name"),
    ],
    ids=["scheme", "host", "name"],
)
def test_a_bucket_that_cannot_be_is_told_as_such(access):
    with pytest.raises(NoBucket, match="name or endpoint cannot be used"):
        Bucket(Settings(), access).put("a", b"1", "text/plain")


def test_failures(endpoint):
    with pytest.raises(NoBucket, match="BUCKET_NAME"):
        Bucket(Settings()).put("a", b"1", "text/plain")
    with pytest.raises(FetchFailed, match="did not accept"):
        Bucket(settings(endpoint, "missing")).put("a", b"1", "text/plain")


def test_a_bucket_is_checked(endpoint):
    Bucket(settings(endpoint)).check()
    with pytest.raises(FetchFailed, match="HTTP 404"):
        Bucket(settings(endpoint, "missing")).check()
    with pytest.raises(FetchFailed, match="ConnectionError"):
        Bucket(settings("http://127.0.0.1:9")).check()


def test_incomplete_keys_do_not_sign(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(FetchFailed, match="set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY"):
        presign(Source("s3", "s3://clips/a.wav"), Settings(bucket_access_key_id="k"))


def test_aws_is_reached_in_the_bucket_s_region():
    mine = Settings(bucket_access_key_id="k", bucket_secret_access_key="s")
    url, trusted = presign(Source("s3", "s3://clips/a b.wav"), mine, region="eu-west-1")
    assert trusted
    assert url.startswith("https://clips.s3.eu-west-1.amazonaws.com/a%20b.wav?")


def test_other_endpoints_get_the_bucket_in_the_path():
    job = S3Access("https://minio.example", "k", "s")
    url, trusted = presign(Source("s3", "s3://clips/a.wav", s3=job), Settings())
    assert not trusted
    assert url.startswith("https://minio.example/clips/a.wav?")
