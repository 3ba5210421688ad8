"""`aviary listen` as a process: stdin, a scripted microphone, a server; lines, events, Ctrl-C and closed pipes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st
from serving import serving

from worker.backends.common import vad
from worker.config import Settings
from worker.entrypoints.cli import main
from worker.entrypoints.cli.listen import Feeder
from worker.entrypoints.cli.listen.captions import Captions, tail
from worker.errors import InternalError

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
TEXTS: dict[str, str] = json.loads((SAMPLES / "texts.json").read_text())
WORDS = [TEXTS["week.wav"], TEXTS["people.mp3"]]
LISTEN = [sys.executable, "-m", "worker", "listen", "--model", "pocketsphinx"]
needs_weights = pytest.mark.skipif(not vad.is_available(), reason="needs onnxruntime and silero-vad")
slow = pytest.mark.slow
PATIENCE_SEC = 60


def two_turns(rate: int = 16_000) -> np.ndarray:
    """Two sentences with silence around them; int16 of shape (samples,)."""
    pause = np.zeros(rate, np.float32)
    parts = [pause]
    for name in ("week.wav", "people.mp3"):
        samples, own = soundfile.read(SAMPLES / name, dtype="float32", always_2d=True)
        parts += [soxr.resample(samples.mean(axis=1), own, rate), pause]
    return (np.clip(np.concatenate(parts), -1, 1) * 32767).astype("<i2")


def environment(**more: str) -> dict[str, str]:
    ours = {"MODEL", "MODEL_DIR", "SKIP_MODEL_LOAD", "API_KEY", "PYTHONUNBUFFERED"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def listen(
    *typed: str, stdin: bytes = b"", code: int = 0, command: list[str] = LISTEN, **env: str
) -> tuple[list[str], str]:
    """Run the command, and return the lines of stdout, and stderr."""
    done = subprocess.run(
        [*command, *typed], input=stdin, env=environment(**env), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode().splitlines(), done.stderr.decode()


@contextlib.contextmanager
def open_turn(*typed: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command after it has got one whole sentence and a part of the next one. Its stdin stays open."""
    samples = two_turns()
    with subprocess.Popen(
        [*LISTEN, *typed, "-"], stdin=subprocess.PIPE, env=environment(), **{"stderr": subprocess.PIPE} | streams
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(samples[: -2 * 16_000].tobytes())
            process.stdin.flush()
            yield process
        finally:
            process.kill()


# Stdin


@slow
@needs_weights
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_raw_audio_gives_a_line_for_each_turn(rate):
    rates = [] if rate == 16_000 else ["--rate", str(rate)]
    lines, said = listen(*rates, "-", stdin=two_turns(rate).tobytes())
    assert lines == WORDS
    assert said == ""


@slow
@needs_weights
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_on_stdin_is_decoded(tmp_path, suffix):
    path = tmp_path / f"turns.{suffix}"
    soundfile.write(path, two_turns(24_000), 24_000)
    lines, _ = listen("-", stdin=path.read_bytes())
    assert lines == WORDS


@slow
@needs_weights
def test_silence_and_an_empty_stdin_have_no_lines():
    assert listen("-", stdin=bytes(64_000)) == ([], "")
    assert listen("-") == ([], "")


@slow
@needs_weights
def test_a_damaged_file_is_an_error_that_says_so():
    lines, said = listen("-", stdin=b"RIFF\x00\x00\x00\x00WAVE" + bytes(100), code=1)
    assert lines == []
    assert said.startswith("aviary: decode_failed: stdin cannot be decoded: ")


@slow
@needs_weights
def test_events_are_those_of_the_realtime_route():
    lines, _ = listen("--json", "-", stdin=two_turns().tobytes())
    events = [json.loads(line) for line in lines]
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds[0] == "updated"
    assert kinds.count("speech_started") == kinds.count("speech_stopped") == kinds.count("committed") == 2
    assert [event["transcript"] for event in events if event["type"].endswith("completed")] == WORDS
    for item in {event["item_id"] for event in events if event["type"].endswith("completed")}:
        deltas = [event["delta"] for event in events if event["type"].endswith("delta") and event["item_id"] == item]
        assert "".join(deltas) in WORDS


@slow
@needs_weights
def test_a_line_is_printed_while_the_audio_goes_on_and_ctrl_c_prints_the_open_turn():
    with open_turn(stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().decode().strip() == WORDS[0]
        time.sleep(1)  # the second turn is open
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().decode()
        assert process.wait(PATIENCE_SEC) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert rest.startswith(WORDS[1][:20])


@slow
@needs_weights
def test_a_reader_that_goes_away_ends_the_command():
    with open_turn(stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.close()
        assert process.wait(PATIENCE_SEC) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


@slow
@needs_weights
def test_a_terminal_shows_the_open_turn_and_then_its_line():
    terminal, end = pty.openpty()
    with open_turn(stdout=end) as process:
        os.close(end)
        shown = ""
        with contextlib.suppress(OSError):  # the end of a terminal, on Linux
            while f"\r\x1b[K{WORDS[0]}\r\n" not in shown or not shown.endswith("\x1b[2m…\x1b[0m"):
                shown += os.read(terminal, 4096).decode()
            assert process.stdin is not None
            process.stdin.close()
            while block := os.read(terminal, 4096):
                shown += block.decode()
        assert process.wait(PATIENCE_SEC) == 0
    os.close(terminal)
    assert shown.startswith("\x1b[2m…\x1b[0m")
    plain = re.sub(r"\r\x1b\[K|\x1b\[2m.*?\x1b\[0m", "", shown)
    assert plain.strip().split("\r\n")[0] == WORDS[0]
    assert "\x1b[2m" not in shown.rpartition("\r\n")[2]


# A server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("data")
    with serving(Settings(model="pocketsphinx", data_dir=folder, api_key="secret", realtime_sessions=1)) as url:
        yield url


REMOTE = [sys.executable, "-m", "worker", "listen"]


@slow
@needs_weights
@pytest.mark.parametrize("suffix", ["", "/v1"])
def test_a_server_transcribes(server, suffix):
    typed = ["--url", server + suffix, "--api-key", "secret", "-"]
    lines, said = listen(*typed, stdin=two_turns().tobytes(), command=REMOTE)
    assert lines == WORDS
    assert said == ""


@slow
@needs_weights
def test_what_a_server_refuses_is_said(server):
    _, said = listen("--url", server, "-", command=REMOTE, code=2)
    assert said == "aviary: Send the API key as a bearer token: Authorization: Bearer <key>.\n"
    _, said = listen("--model", "nobody", "--url", server, "--api-key", "secret", "-", command=REMOTE, code=2)
    assert "nobody" in said
    typed = ["--prompt", "x", "--url", server, "--api-key", "secret", "-"]
    _, said = listen(*typed, command=REMOTE, code=2)
    assert "prompt" in said


def test_a_server_that_does_not_respond_is_an_error(capsys):
    assert main(["listen", "--url", "http://127.0.0.1:9", "-"]) == 2
    assert "Check the URL, and that the server is running" in capsys.readouterr().err
    assert main(["listen", "--url", "localhost", "-"]) == 2
    assert "use http://HOST:PORT" in capsys.readouterr().err


# The microphone

SCRIPTED = """
import threading, time
from pathlib import Path

class PortAudioError(Exception): pass

class RawInputStream:
    def __init__(self, samplerate, channels, dtype, blocksize, callback):
        assert (samplerate, channels, dtype) == (16000, 1, "int16")
        self.size, self.callback = 2 * blocksize, callback
    def __enter__(self):
        threading.Thread(target=self.run, daemon=True).start()
    def __exit__(self, *_): pass
    def run(self):
        data = Path(__file__).with_name("speech.pcm").read_bytes()
        for at in range(0, len(data), self.size):
            self.callback(data[at:at + self.size], self.size // 2, None, None)
            time.sleep(0.01)
"""


@slow
@needs_weights
def test_a_microphone_is_transcribed_until_ctrl_c(tmp_path):
    (tmp_path / "sounddevice.py").write_text(SCRIPTED)
    (tmp_path / "speech.pcm").write_bytes(two_turns().tobytes())
    env = environment(PYTHONPATH=f"{tmp_path}:{ROOT}")
    with subprocess.Popen(LISTEN, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().decode().strip() for _ in WORDS] == WORDS
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SEC) == 130


def test_without_sounddevice_the_error_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["listen"]) == 2
    said = capsys.readouterr().err
    assert "pip install sounddevice" in said
    assert "aviary listen -" in said


def test_without_a_microphone_the_error_says_so(monkeypatch, tmp_path, capsys):
    broken = SCRIPTED.replace("assert (", "raise PortAudioError('no device')  # ")
    (tmp_path / "sounddevice.py").write_text(broken)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["listen"]) == 2
    assert "the microphone cannot be opened: no device" in capsys.readouterr().err
    sys.modules.pop("sounddevice", None)


@needs_weights
def test_a_microphone_that_does_not_start_ends_the_command(tmp_path):
    broken = SCRIPTED.replace("threading.Thread(", "raise PortAudioError('device busy')  # ")
    (tmp_path / "sounddevice.py").write_text(broken)
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "SKIP_MODEL_LOAD": "1"}
    lines, said = listen(code=1, command=[sys.executable, "-m", "worker", "listen"], **env)
    assert (lines, said.count("the microphone cannot be opened: device busy")) == ([], 1)


def test_audio_that_cannot_be_read_ends_the_session_with_an_error():
    class Link:
        def __init__(self) -> None:
            self.sent, self.is_finished = [], threading.Event()
            self.append, self.finish = self.sent.append, self.is_finished.set

    def blocks() -> Iterator[bytes]:
        yield b"first"
        raise OSError(errno.EIO, "Input/output error")

    link = Link()
    feeder = Feeder(link, blocks())
    feeder.start()
    assert link.is_finished.wait(10)
    assert link.sent == [b"first"]
    assert isinstance(feeder.error, InternalError)


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (["talk.wav"], "aviary listen - < FILE"),
        (["--rate", "8000"], "--rate is for raw audio on stdin"),
        (["--model", "pocketsphinx", "--prompt", "x", "-"], "prompt"),
    ],
)
def test_wrong_usage_is_reported_before_a_model_loads(typed, part, capsys):
    assert main(["listen", *typed]) == 2
    assert part in capsys.readouterr().err


def test_the_command_imports_no_model_library():
    code = (
        "import sys; import worker.entrypoints.cli.listen; print(*{'torch', 'nemo', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True) == "\n"


# Captions, without a session


def event(kind: str, item: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": f"x.{kind}", "item_id": item, **fields}


def test_captions_grow_and_become_lines():
    captions = Captions()
    assert captions.apply(event("speech_started")) == []
    assert captions.partial == "…"
    captions.apply(event("delta", delta="see you"))
    captions.apply(event("committed"))
    captions.apply(event("speech_started", "b"))
    assert captions.partial == "see you …"
    assert captions.apply(event("cleared")) == []
    assert not captions.is_done
    assert captions.apply(event("completed", transcript="see you next")) == ["see you next"]
    assert captions.apply(event("failed", "b", error={"code": "model_error", "message": "it broke"})) == []
    assert captions.failures == ["model_error: it broke"]
    assert captions.is_done


@given(st.text(st.sampled_from("ab 語かé"), max_size=60), st.integers(3, 40))
def test_the_end_of_a_text_fits_into_the_terminal(text, columns):
    shown = tail(text, columns)
    wide = sum(2 if char in "語か" else 1 for char in shown)
    assert wide <= columns
    assert shown == text or (shown[0] == "…" and text.endswith(shown[1:]) and wide >= columns - 1)
