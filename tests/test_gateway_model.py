"""Two workers behind nginx, each with a real model of its own on half of the cores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import DIGITS, LABELS, MODEL
from gateway_host import hosting

from worker.entrypoints.http.gateway import nginx

pytestmark = pytest.mark.slow


@pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")
def test_two_workers_with_a_real_model_hear_right(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    with hosting(tmp_path, 2, SKIP_MODEL_LOAD="0", MODEL=str(MODEL), DEVICE="cpu") as host:

        def hear(name: str) -> str:
            answer = host.client.post(
                "/v1/audio/transcriptions", files={"file": (DIGITS / name).read_bytes()}, data={"model": str(MODEL)}
            )
            return answer.json()["text"]

        with ThreadPoolExecutor(8) as pool:
            heard = dict(zip(LABELS, pool.map(hear, LABELS), strict=True))
        assert heard == LABELS
        assert min(one["inputs"]["answered"] for one in host.own_stats()) > 0
