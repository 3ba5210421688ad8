"""Manifests: every line once and in order, whatever happens; on a live server, on the engine, in processes that are
killed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import tone
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving

from worker import errors
from worker.config import Settings
from worker.engine.engine import Engine
from worker.manifest import LineResult, on_ray, output_path, process, process_manifest, with_engine
from worker.manifest.run import WINDOW

ROOT = Path(__file__).parent.parent
WEEK = str((ROOT / "samples/week.wav").resolve())


def rows(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def write(path: Path, *lines) -> Path:
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8"
    )
    return path


def echo(line) -> LineResult:
    """Answers with the audio's own name."""
    audio = line.audio()
    return LineResult({"pred_text": audio if isinstance(audio, str) else f"{len(audio)} bytes"})


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def numbers(count: int):
    return [{"audio_filepath": f"{number}.wav", "n": number} for number in range(count)]


# On real models


@pytest.mark.slow
def test_words_of_a_live_server_and_the_same_of_the_engine(tmp_path):
    (tmp_path / "data").mkdir()
    manifest = write(
        tmp_path / "set.jsonl",
        {"audio_filepath": "data/a.wav", "duration": 99.0, "text": "ä"},
        "",
        {"path": "missing.wav"},
        {"audio": WEEK, "offset": 0.0, "duration": 0.46},
        "{broken",
        {"text": "no audio"},
    )
    (tmp_path / "data/a.wav").write_bytes(Path(WEEK).read_bytes())
    options = Settings(model="pocketsphinx", data_dir=tmp_path / "scratch", allowed_paths=())
    with serving(options) as url:
        output = asyncio.run(process_manifest(manifest, tmp_path / "served", url, concurrency=2, task="transcribe"))
    served = rows(output)
    assert output == tmp_path / "served" / "set.transcribe.jsonl"
    assert served[0] == {
        "audio_filepath": "data/a.wav",
        "duration": 99.0,
        "text": "ä",
        "pred_text": "see you next week",
    }
    assert served[2]["pred_text"] == "see you"
    assert [row.get("error", {}).get("code") for row in served] == [
        None,
        "source_not_found",
        None,
        "invalid_input",
        "invalid_input",
    ]
    assert served[3]["raw"] == "{broken"
    told = []
    with Engine(options) as engine:
        summary = process(
            manifest, tmp_path / "run.jsonl", with_engine(engine, "transcribe"), concurrency=2, progress=told.append
        )
    own = rows(summary.output)
    for row in (*served, *own):
        row.get("error", {}).pop("message", None)
    assert own == served
    assert (summary.lines, summary.failed, summary.resumed, summary.done) == (5, 3, 0, 1.0)
    assert summary.errors == {"source_not_found": 1, "invalid_input": 2}
    assert told[-1].lines == 5


@pytest.mark.slow
@pytest.mark.parametrize("levels", [True, False])
def test_times_are_on_the_lines_where_they_are_asked_for(tmp_path, levels):
    other = str(Path(WEEK).with_name("doctor.flac"))
    manifest = write(tmp_path / "set.jsonl", {"path": WEEK, "timestamps": "of an earlier stage"}, {"path": other})
    configured = Settings(model="pocketsphinx", data_dir=tmp_path / "scratch", allowed_paths=())
    with Engine(configured) as engine, serving(configured, engine) as url:
        for _ in range(2):  # the second time goes on where there is nothing left to do
            output = asyncio.run(process_manifest(manifest, tmp_path, url, task="transcribe", timestamps=levels))
            own = process(manifest, tmp_path / "own.jsonl", with_engine(engine, "transcribe", timestamps=levels))
        asked = {"timestamps": levels, "audio_base64": base64.b64encode(Path(WEEK).read_bytes()).decode()}
        answer = httpx.post(f"{url}/runsync", json={"input": asked}, timeout=60).json()["output"]["results"][0]
    first, second = rows(output)
    assert rows(own.output) == [first, second]
    assert own.resumed == 2
    assert first.get("timestamps") == (answer["timestamps"] if levels else "of an earlier stage")
    assert ("timestamps" in second) is levels
    assert "timestamps" not in answer or [word["word"] for word in answer["timestamps"]["word"]] == [
        "see",
        "you",
        "next",
        "week",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("levels", [True, False])
def test_confidences_are_on_the_lines_as_nemo_writes_them(tmp_path, levels):
    manifest = write(tmp_path / "set.jsonl", {"path": WEEK})
    configured = Settings(model="pocketsphinx", data_dir=tmp_path / "scratch", allowed_paths=())
    options = {"confidence": True, "timestamps": levels}
    with Engine(configured) as engine, serving(configured, engine) as url:
        output = asyncio.run(process_manifest(manifest, tmp_path, url, task="transcribe", **options))
        own = process(manifest, tmp_path / "own.jsonl", with_engine(engine, "transcribe", **options))
        plain = process(manifest, tmp_path / "plain.jsonl", with_engine(engine, "transcribe"))
    (line,) = rows(output)
    assert rows(own.output) == [line]
    assert line["words"] == line["pred_text"].split() == ["see", "you", "next", "week"]
    assert all(0 < value <= 1 for value in line["word_confidence"])
    assert ("timestamps" in line) is levels
    if levels:
        assert [word["confidence"] for word in line["timestamps"]["word"]] == line["word_confidence"]
    assert not {"words", "word_confidence"} & rows(plain.output)[0].keys()


def test_the_first_clients_example_enriches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / "song.wav", 2)
    write(
        tmp_path / "dataset.jsonl",
        {"audio_filepath": "song.wav", "error": "of an earlier stage"},
        {"url": "https://127.0.0.1/x"},
    )
    found = {}
    with serving(Settings(skip_model_load=True, data_dir=tmp_path / "data")) as url:
        exec(
            f"""async def main():
            output_path = await process_manifest(
                manifest_path="dataset.jsonl",
                output_dir="enriched/",
                server_url="{url}",
                concurrency=16
            )
            found["path"] = output_path""",
            globals() | {"found": found},
            found,
        )
        asyncio.run(found["main"]())
    first, second = rows(found["path"])
    assert first["caption"] == "[dry-run] analyze of 2.00 s"
    assert "error" not in first
    assert np.load(found["path"].parent / first["embedding_path"]).shape == (50, 1280)
    assert second["error"]["code"] == "source_forbidden"


@pytest.mark.parametrize(
    ("task", "added"),
    [("caption", {"caption"}), ("embed", {"embedding_path"}), ("analyze", {"caption", "embedding_path"})],
)
def test_tasks_on_the_engine(tmp_path, task, added):
    manifest = write(tmp_path / "set.jsonl", *[{"source": WEEK}] * 3)
    with Engine(Settings(skip_model_load=True, data_dir=tmp_path / "data")) as engine:
        summary = process(manifest, output_path(manifest, tmp_path / "out", task), with_engine(engine, task))
    for row in rows(summary.output):
        assert row.keys() == {"source"} | added
        if "embedding_path" in row:
            assert np.load(tmp_path / "out" / row["embedding_path"]).dtype == np.float32
    assert len({row.get("embedding_path", id(row)) for row in rows(summary.output)}) == 3


@pytest.mark.parametrize(
    ("task", "options"), [("transcribe", {"timestamps": True}), ("caption", {}), ("embed", {}), ("analyze", {})]
)
def test_a_file_that_breaks_off_is_told_on_its_line(tmp_path, task, options):
    (tmp_path / "cut.wav").write_bytes(Path(WEEK).read_bytes()[:20_000])
    manifest = write(tmp_path / "set.jsonl", {"path": "cut.wav", "warning": "of an earlier stage"}, {"path": WEEK})
    configured = Settings(skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=())
    with Engine(configured) as engine, serving(configured, engine) as url:
        for _ in range(2):  # the second time goes on where there is nothing left to do
            output = asyncio.run(process_manifest(manifest, tmp_path / "served", url, task=task, **options))
            own = process(manifest, tmp_path / "own.jsonl", with_engine(engine, task, **options))
    assert own.resumed == 2
    for found in (rows(output), rows(own.output)):
        assert found[0]["warning"] == "the file is truncated after 0.46 of 1.30 s"
        assert "warning" not in found[1]


def test_where_ray_is_not_installed_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(errors.RequestError, match=r"pip install 'aviary-worker\[ray\]'"),
        on_ray(Settings(), "transcribe"),
    ):
        pass


# Lines


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"audio_filepath": 7}, "invalid_input"),
        ({"path": ""}, "invalid_input"),
        ({"audio": ["a"]}, "invalid_input"),
        ({"url": "https://host/a.wav", "offset": 1}, "invalid_input"),
        ({"path": WEEK, "offset": -1}, "invalid_input"),
        ({"path": WEEK, "offset": "1"}, "invalid_input"),
        ({"path": WEEK, "offset": True}, "invalid_input"),
        ({"path": WEEK, "offset": 0, "duration": 0}, "invalid_input"),
        ({"path": WEEK, "offset": 60}, "empty_audio"),
        ({"path": "none.wav", "offset": 1}, "source_not_found"),
        ({"path": __file__, "offset": 1}, "decode_failed"),
    ],
)
def test_lines_that_name_no_audio(tmp_path, fields, code):
    summary = process(write(tmp_path / "m.jsonl", fields), tmp_path / "out.jsonl", echo)
    (row,) = rows(summary.output)
    assert row["error"]["code"] == code
    assert {name: row[name] for name in fields} == fields


def test_a_segment_is_cut_where_it_says(tmp_path):
    wave = np.arange(-8000, 8000, dtype=np.int16)
    soundfile.write(tmp_path / "a.flac", wave, 8000)
    got = []

    def keep(line):
        got.append(soundfile.read(io.BytesIO(line.audio()))[0] * 32768)
        return LineResult({})

    process(
        write(
            tmp_path / "m.jsonl", {"path": "a.flac", "offset": 0.5, "duration": 0.25}, {"path": "a.flac", "offset": 1.5}
        ),
        tmp_path / "out.jsonl",
        keep,
        concurrency=1,
    )
    np.testing.assert_array_equal(got[0], wave[4000:6000])
    np.testing.assert_array_equal(got[1], wave[12000:])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(JSON.map(json.dumps) | st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=12)


@given(LINES, st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_any_manifest_comes_back_line_by_line_and_resumes_anywhere(tmp_path_factory, lines, cut):
    folder = tmp_path_factory.mktemp("any")
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    (folder / "m.jsonl").write_bytes(b"\n".join(raw))
    output = folder / "out.jsonl"
    summary = process(folder / "m.jsonl", output, echo, concurrency=2)
    assert summary.lines == sum(bool(line.strip()) for line in raw)
    whole = output.read_bytes()
    for row in whole.split(b"\n")[:-1]:
        json.loads(row, parse_constant=pytest.fail)
    output.write_bytes(whole[:cut])
    again = process(folder / "m.jsonl", output, echo, concurrency=2)
    assert output.read_bytes() == whole
    assert again.resumed == whole[:cut].count(b"\n")
    assert again.errors == summary.errors


# Order, resuming, memory


def test_the_order_is_the_manifests_whoever_is_faster(tmp_path):
    manifest = write(tmp_path / "m.jsonl", *numbers(60))
    waits = np.random.default_rng(0).uniform(0, 0.02, 60)
    inside, most = [], []

    def slow(line):
        inside.append(line.index)
        most.append(len(inside))
        time.sleep(waits[line.index])
        inside.remove(line.index)
        return LineResult({"pred_text": str(line.index)})

    process(manifest, tmp_path / "out.jsonl", slow, concurrency=8)
    assert [row["n"] for row in rows(tmp_path / "out.jsonl")] == list(range(60))
    assert 1 < max(most) <= 8


def test_the_window_is_bounded(tmp_path):
    """While the first line is not done, no more than a window of lines is read and asked."""
    manifest = write(tmp_path / "m.jsonl", *numbers(500))
    first, asked = threading.Event(), []

    def ask(line):
        asked.append(line.index)
        if line.index == 0:
            first.wait(10)
        return LineResult({})

    run = threading.Thread(target=process, args=(manifest, tmp_path / "out.jsonl", ask), kwargs={"concurrency": 3})
    run.start()
    time.sleep(0.3)
    assert len(asked) <= WINDOW * 3
    first.set()
    run.join(20)
    assert len(rows(tmp_path / "out.jsonl")) == 500


def test_memory_does_not_grow_with_the_manifest(tmp_path):
    """Embeddings of 20 MB in all, and 10 MB of lines: neither is held."""
    manifest = tmp_path / "m.jsonl"
    with manifest.open("w") as file:
        for number in range(5000):
            file.write(json.dumps({"path": "x", "n": number, "text": "t" * 2000}) + "\n")

    def ask(line):
        return LineResult({}, np.zeros((500, 100), np.float32) if line.index % 50 == 0 else None)

    tracemalloc.start()
    try:
        process(manifest, tmp_path / "out.jsonl", ask, concurrency=4)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert len(rows(tmp_path / "out.jsonl")) == 5000


CHILD = """
import sys
from pathlib import Path
from worker.config import Settings
from worker.engine.engine import Engine
from worker.manifest import process, with_engine
manifest, output = sys.argv[1:]
with Engine(Settings(skip_model_load=True, data_dir=Path(output).parent / "data", batch_wait_sec=0)) as engine:
    process(manifest, output, with_engine(engine, "transcribe"), concurrency=8)
"""


@pytest.mark.slow
def test_killed_five_times_it_ends_complete(tmp_path):
    clips = [str(tone(tmp_path / f"{n}.wav", 0.1 * n)) for n in range(1, 6)]
    manifest = write(tmp_path / "m.jsonl", *[{"audio_filepath": clips[n % 5], "n": n} for n in range(2000)])
    output = tmp_path / "out.jsonl"
    killed = 0
    while True:
        before = size(output)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, manifest, output],
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            while killed < 5 and child.poll() is None and size(output) <= before + 4000 * killed:
                time.sleep(0.005)
            if killed == 5:
                assert child.wait(60) == 0
                break
            assert child.poll() is None, "it was over before it was killed"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        killed += 1
        if killed == 3:
            with output.open("ab") as file:
                file.write(b'{"audio_filepath": "/half of a li')
    found = rows(output)
    assert [row["n"] for row in found] == list(range(2000))
    assert all(row["pred_text"] == f"[dry-run] transcribe of {0.1 * (row['n'] % 5 + 1):.2f} s" for row in found)


def test_failed_lines_can_be_asked_again(tmp_path):
    manifest, output = write(tmp_path / "m.jsonl", *numbers(50)), tmp_path / "out.jsonl"
    asked = []

    def fails(line):
        if line.index % 10 == 3:
            raise errors.FetchFailed("not now")
        if line.index == 17:
            raise ZeroDivisionError
        return LineResult({"pred_text": "old"})

    def works(line):
        asked.append(line.index)
        if line.index == 23:
            raise errors.FetchFailed("still")
        return LineResult({"pred_text": "new"})

    assert process(manifest, output, fails).errors == {"fetch_failed": 5, "internal_error": 1}
    assert process(manifest, output, works).resumed == 50
    assert not asked, "a finished output is left alone"
    summary = process(manifest, output, works, retry_failed=True, concurrency=2)
    assert sorted(asked) == [3, 13, 17, 23, 33, 43]
    assert (summary.lines, summary.errors) == (50, {"fetch_failed": 1})
    assert [row["n"] for row in rows(output)] == list(range(50))
    assert [row["n"] for row in rows(output) if row.get("pred_text") == "new"] == [3, 13, 17, 33, 43]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    "error",
    [
        errors.ServerUnreachable,
        errors.Unauthorized,
        errors.QueueFull,
        errors.DeviceLost,
        errors.ModelNotFound,
        errors.ModelUnavailable,
    ],
)
def test_what_is_no_lines_fault_ends_the_run_which_goes_on_later(tmp_path, error):
    manifest, output = write(tmp_path / "m.jsonl", *numbers(30)), tmp_path / "out.jsonl"

    def breaks(line):
        if line.index >= 20:
            raise error("it is so")
        return echo(line)

    with pytest.raises(error):
        process(manifest, output, breaks, concurrency=4)
    assert [row["n"] for row in rows(output)] == list(range(20))
    summary = process(manifest, output, echo)
    assert (summary.lines, summary.resumed, summary.failed) == (30, 20, 0)


def test_what_cannot_be_is_refused_and_nothing_is_lost(tmp_path):
    manifest, output = write(tmp_path / "m.jsonl", *numbers(3)), tmp_path / "out.jsonl"
    with pytest.raises(errors.RequestError, match="no such manifest"):
        process(tmp_path / "none.jsonl", output, echo)
    with pytest.raises(errors.RequestError, match="manifest itself"):
        process(manifest, manifest, echo)
    process(manifest, output, echo)
    kept = output.read_bytes()
    other = write(tmp_path / "other.jsonl", *reversed(numbers(3)))
    short = write(tmp_path / "short.jsonl", *numbers(2))
    for wrong in (other, short):
        for retry in (False, True):
            with pytest.raises(errors.RequestError, match="does not belong to this manifest"):
                process(wrong, output, lambda line: (_ for _ in ()).throw(errors.FetchFailed("x")), retry_failed=retry)
    assert output.read_bytes() == kept
    (tmp_path / "notes.txt").write_text("my\nown\nnotes")
    with pytest.raises(errors.RequestError, match="not the output of a manifest"):
        process(manifest, tmp_path / "notes.txt", echo)
    assert (tmp_path / "notes.txt").read_text() == "my\nown\nnotes"
    with pytest.raises(errors.RequestError, match="task"):
        output_path(manifest, tmp_path, "close")


def test_an_output_has_one_set_of_options(tmp_path):
    manifest, output = write(tmp_path / "m.jsonl", *numbers(3)), tmp_path / "out.jsonl"

    def breaks(line):
        if line.index == 2:
            raise errors.ServerUnreachable("gone")
        return echo(line)

    with pytest.raises(errors.ServerUnreachable):
        process(manifest, output, breaks, concurrency=1, options={"style": "brief"})
    kept = output.read_bytes()
    for other in ({"style": "technical"}, {}, {"style": "brief", "model": "a"}):
        with pytest.raises(errors.RequestError, match=re.escape("started with other options ({'style': 'brief'})")):
            process(manifest, output, echo, options=other)
    assert output.read_bytes() == kept
    assert process(manifest, output, echo, options={"style": "brief"}).lines == 3
    output.unlink()
    assert process(manifest, output, echo, options={}).lines == 3


def test_two_runs_do_not_write_one_output(tmp_path):
    manifest, output = write(tmp_path / "m.jsonl", *numbers(3)), tmp_path / "out.jsonl"

    def ask(line):
        with pytest.raises(errors.RequestError, match="another run"):
            process(manifest, output, echo)
        return echo(line)

    assert process(manifest, output, ask).failed == 0


def test_a_cancelled_run_stops_at_once_and_can_go_on(tmp_path):
    clip = tone(tmp_path / "a.wav", 0.2)
    manifest = write(tmp_path / "m.jsonl", *[{"path": str(clip), "n": n} for n in range(3000)])

    async def give_up(url):
        work = asyncio.create_task(process_manifest(manifest, tmp_path, url, 4, task="transcribe"))
        output = output_path(manifest, tmp_path, "transcribe")
        while not output.exists() or not output.stat().st_size:
            await asyncio.sleep(0.02)
        work.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert time.monotonic() - started < 5
        return output

    with serving(Settings(skip_model_load=True, data_dir=tmp_path / "data")) as url:
        output = asyncio.run(give_up(url))
    found = rows(output)
    assert 0 < len(found) < 3000
    assert [row["n"] for row in found] == list(range(len(found)))
    assert all("error" not in row for row in found)
