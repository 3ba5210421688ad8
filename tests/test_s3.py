"""Bytes into S3 and back by the URL given; a job's own bucket cannot make the worker reach inside."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


# The AWS credential chain


@pytest.fixture
def no_keys(monkeypatch):
    """An environment in which the chain finds no credentials, and which gives up at once."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "1")
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return monkeypatch


@pytest.fixture
def service():
    """A server that answers as the metadata service of an instance, and as STS; yields its URL and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            role = "/latest/meta-data/iam/security-credentials/"
            body = {"/latest/api/token": "token", role: "role", f"{role}role": json.dumps(ROLE)}.get(self.path, "no")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_POST = do_CONNECT = do_GET

        def log_message(self, *_args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


ROLE = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "ROLEKEY",
    "SecretAccessKey": "s",
    "Token": "t",
    "LastUpdated": "2020-01-01T00:00:00Z",
    "Expiration": "2099-01-01T00:00:00Z",
}
CLIP = Source("s3", "s3://clips/a.wav")


def test_the_metadata_service_is_asked_only_on_request(no_keys, service):
    url, asked = service
    no_keys.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
    with pytest.raises(FetchFailed, match="AWS_EC2_METADATA_DISABLED=false"):
        presign(CLIP, Settings())
    assert asked == []
    no_keys.setenv("AWS_EC2_METADATA_DISABLED", "false")
    assert "X-Amz-Credential=ROLEKEY" in presign(CLIP, Settings()).url
    assert asked[0] == "PUT /latest/api/token"


def test_no_look_up_goes_through_a_proxy(no_keys, service, tmp_path):
    url, asked = service
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        no_keys.setenv(name, url)
    no_keys.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    no_keys.setenv("AWS_EC2_METADATA_DISABLED", "false")
    with pytest.raises(FetchFailed):
        presign(CLIP, Settings())
    (tmp_path / "token").write_text("token")
    no_keys.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    no_keys.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/aviary")
    no_keys.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    with pytest.raises(FetchFailed, match="EndpointConnectionError"):
        presign(CLIP, Settings())
    assert asked == []


PROFILES = {
    "profile": ("", {"AWS_PROFILE": "missing"}),
    "process": ("[default]\ncredential_process = /nowhere/program\n", {}),
    "no json": ("[default]\ncredential_process = echo nothing\n", {}),
    "no file": ("[[[", {}),
    "container": ("", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://host.example/"}),
    "half a role": ("[default]\nrole_arn = arn:aws:iam::1:role/a\n", {}),
}


@pytest.mark.parametrize("fault", PROFILES)
def test_a_fault_of_the_chain_is_told_as_such(no_keys, tmp_path, fault):
    text, environment = PROFILES[fault]
    (tmp_path / "config").write_text(text)
    for name, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **environment}.items():
        no_keys.setenv(name, value)
    with pytest.raises(FetchFailed, match=r"cannot be read \(\w+\)\. Check the AWS variables"):
        presign(CLIP, Settings())


# Buckets


def test_the_worker_s_own_keys_open_the_allowed_buckets_only():
    mine = Settings(bucket_access_key_id="k", bucket_secret_access_key="s", allowed_buckets="clips, more")
    for bucket in ("clips", "more"):
        assert presign(Source("s3", f"s3://{bucket}/a.wav"), mine).trusted
    for bucket in ("other", "Clips", "clips.", "clips:80", "x@clips", "arn:aws:s3:us-east-1:1:accesspoint"):
        with pytest.raises(SourceForbidden, match="ALLOWED_BUCKETS"):
            presign(Source("s3", f"s3://{bucket}/a.wav"), mine)
    job = S3Access("https://minio.example", "k", "s")
    assert not presign(Source("s3", "s3://other/a.wav", s3=job), mine).trusted
    with pytest.raises(SourceForbidden):
        presign(Source("s3", "s3://other/a.wav", s3=S3Access("https://minio.example", "k")), mine)


def test_without_allowed_buckets_the_credentials_decide():
    mine = Settings(bucket_access_key_id="k", bucket_secret_access_key="s", bucket_name="results")
    assert presign(Source("s3", "s3://other/a.wav"), mine).trusted
