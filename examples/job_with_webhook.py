"""Submit a job, receive its webhook, check that the server signed it, and fetch the result.

Start a server that may call this machine, then run this example from the root of the repository:

    MODEL=pocketsphinx ALLOW_PRIVATE_URLS=1 WEBHOOK_SECRET=secret .venv/bin/python -m worker serve
    .venv/bin/python -m examples.job_with_webhook [http://127.0.0.1:8000]
"""

import hashlib
import hmac
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seconds, signature = (part.split("=")[1] for part in self.headers["X-Aviary-Signature"].split(","))
        expected = hmac.new(b"secret", f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
        genuine = hmac.compare_digest(signature, expected)
        self.send_response(204 if genuine else 403)
        self.end_headers()
        if genuine:  # A receiver on the internet must also reject an old value of `seconds`.
            job = json.loads(body)
            print(job["status"], httpx.get(f"{SERVER}/jobs/{job['job_id']}/result").json()["text"])


with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
    fields = {"webhook": f"http://127.0.0.1:{receiver.server_port}"}
    clip = ("week.wav", Path("samples/week.wav").read_bytes())
    httpx.post(f"{SERVER}/transcribe/async", data=fields, files={"file": clip}).raise_for_status()
    receiver.handle_request()  # This call handles one request: the webhook of the job.
