"""The Python API: what a notebook sees. The engine is real; its model is a dry run, pocketsphinx, or one that
echoes."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import pydoc
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, tone
from hypothesis import given, settings
from hypothesis import strategies as st

import worker as runner
from worker.audio import arrays
from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints import python
from worker.errors import (
    AviaryError,
    ConfigError,
    InputError,
    ModelNotFound,
    ModelUnavailable,
    RequestError,
    SourceNotFound,
    Unsupported,
)
from worker.types import Analysis, Batch, Caption, Embedding, Failure, Output, Reply, Span, Transcript

ROOT = Path(__file__).resolve().parent.parent
WEEK = ROOT / "samples" / "week.wav"
PUBLIC = [
    "Analysis",
    "Answer",
    "AsyncClient",
    "AviaryError",
    "Caption",
    "Client",
    "Diarization",
    "Embedding",
    "Failure",
    "ModelBundle",
    "Reply",
    "Span",
    "SpeakerTurn",
    "Transcript",
    "evaluate_folder",
    "load_model",
    "process_manifest",
    "process_manifest_sync",
    "transcribe_file",
    "transcribe_files",
]


class Echo(Backend):
    """Hears how loud it is, and gives the samples themselves as the embedding, or their spectrum when pooled."""

    def load(self) -> None:
        pass

    def infer(self, batch: Batch) -> list[Output]:
        return [self._one(piece.options, piece.clip.samples) for piece in batch.pieces]

    @staticmethod
    def _one(options, samples) -> Output:
        if options.task == "transcribe":
            return Transcript("loud" if np.abs(samples).max() > 0.3 else "soft")
        pooled = options.pooling == "mean"
        return Embedding(
            np.abs(np.fft.rfft(samples, 16_000)).astype(np.float32) if pooled else samples[:, None],
            16_000.0,
            options.pooling,
        )


@pytest.fixture(scope="module")
def dry():
    with python.load(Settings(skip_model_load=True, model="audio-flamingo"), "audio-flamingo") as bundle:
        yield bundle


@pytest.fixture(scope="module")
def echo():
    engine = Engine(Settings(model="whisper-tiny", models_memory_gb=1), create_backend=lambda model: Echo())
    with python.ModelBundle(engine) as bundle:
        yield bundle


@pytest.fixture(scope="module")
def ears():
    with runner.load_model(model="pocketsphinx") as bundle:
        yield bundle


# The package


def test_the_public_names_are_these_and_all_are_there():
    assert sorted(runner.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(runner))
    assert all(getattr(runner, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = runner.nonesuch


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "worker" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in block.body for alias in node.names) == PUBLIC
    homes = {alias.name: node.module for node in block.body for alias in node.names}
    assert homes == {name: home for home, names in runner._HOMES.items() for name in names}
    assert (ROOT / "worker" / "py.typed").is_file()


def test_importing_the_package_loads_nothing():
    code = "import sys; before = set(sys.modules); import worker; print(sorted(set(sys.modules) - before))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert "worker" in ast.literal_eval(loaded)
    assert not {"numpy", "pydantic", "torch", "requests", "worker.entrypoints.python"} & set(ast.literal_eval(loaded))


# Typed answers


def test_each_task_has_its_own_output(dry):
    path = str(WEEK)
    for answer, kind in (
        (dry.transcribe(path), Transcript),
        (dry.caption(path, style="brief"), Caption),
        (dry.embed(path), Embedding),
        (dry.chat(path, "What is it?"), Reply),
        (dry.analyze(path), Analysis),
    ):
        assert isinstance(answer.output, kind)
        assert answer.file == path
        assert answer.duration_sec == pytest.approx(1.268, abs=0.001)
    assert dry.embed(path, pooling="mean").output.values.shape == (1280,)
    with pytest.raises(Unsupported, match="cannot translate"):
        dry.translate(path)


def test_times_are_there_when_asked_for(ears):
    assert ears.transcribe(WEEK).output.words == ()
    assert [word.text for word in ears.transcribe(WEEK, timestamps=True).output.words] == ["see", "you", "next", "week"]


def test_many_answer_in_order_with_errors_in_place(dry):
    data = WEEK.read_bytes()
    answers = dry.transcribe([str(WEEK), "/nowhere.wav", data, b"no audio", np.zeros(16_000)], sample_rate=16_000)
    assert [one.index for one in answers] == [0, 1, 2, 3, 4]
    assert [one.error.code for one in answers if isinstance(one, Failure)] == ["source_not_found", "decode_failed"]
    assert (answers[2].file, answers[2].duration_sec) == ("input 2", answers[0].duration_sec)
    assert dry.transcribe([]) == []


@pytest.mark.parametrize("wrong", [None, 3, object(), [["a.wav"]]])
def test_what_is_no_audio_is_an_error_of_the_call(dry, wrong):
    with pytest.raises(RequestError, match="must be a path, a URL, bytes or an array"):
        dry.transcribe(wrong)


@pytest.mark.parametrize(
    "several",
    [
        list,
        tuple,
        iter,
        lambda paths: (path for path in paths),
        lambda paths: dict(enumerate(paths)).values(),
        np.array,
        lambda paths: np.array([Path(path) for path in paths], object),
        lambda paths: pytest.importorskip("pandas").Series(paths),
        lambda paths: pytest.importorskip("pandas").DataFrame({"path": paths}, dtype=object)["path"],
    ],
    ids=["list", "tuple", "iterator", "generator", "values", "strings", "objects", "Series", "column"],
)
def test_anything_to_iterate_over_is_several_inputs(dry, several):
    paths = [str(WEEK), "/nowhere.wav", str(WEEK.with_name("doctor.flac"))]
    answers = dry.transcribe(several(paths))
    assert [one.index for one in answers] == [0, 1, 2]
    assert [answers[0].file, answers[1].error.code, answers[2].file] == [paths[0], "source_not_found", paths[2]]
    assert sorted(one.index for one in dry.as_completed("transcribe", several(paths))) == [0, 1, 2]


def test_no_inputs_are_no_answers_and_one_input_is_one(dry):
    assert dry.transcribe(iter([])) == list(dry.as_completed("caption", [])) == []
    (answer,) = dry.as_completed("transcribe", str(WEEK))
    assert answer.file == str(WEEK)
    with WEEK.open("rb") as file, pytest.raises(RequestError, match="not BufferedReader"):
        dry.transcribe(file)


def test_a_column_of_samples_is_one_array(echo):
    column = pytest.importorskip("pandas").Series(np.full(1600, 0.5))
    assert echo.transcribe(column, sample_rate=16_000).text == "loud"


# Signatures and options

TASKS = ["transcribe", "translate", "caption", "embed", "chat", "analyze"]


@pytest.mark.parametrize("task", TASKS)
def test_help_and_tab_show_the_options_of_a_task(dry, task):
    method = getattr(dry, task)
    shown = inspect.signature(method).parameters
    named = {name for name, one in shown.items() if one.kind is one.KEYWORD_ONLY}
    assert named == set(get_type_hints(python._CALLS[task]))
    assert not [one for one in shown.values() if one.kind is one.VAR_KEYWORD]
    text = pydoc.render_doc(method, renderer=pydoc.plaintext)
    assert all(f"\n        {name}: " in text for name in named), text


@pytest.mark.parametrize(("wrong", "near"), [("sampling_rate", "sample_rate"), ("word_timestamps", "timestamps")])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_unknown_option_is_named_with_the_nearest_of_this_method(dry, wrong, near, streamed):
    """Before the audio is looked at: an array would lack its sample_rate."""
    call = (lambda **named: next(dry.as_completed("transcribe", **named))) if streamed else dry.transcribe
    with pytest.raises(RequestError) as caught:
        call(audio=[np.zeros(9)], **{wrong: 1})
    first, _, listed = caught.value.message.partition(" Its options are ")
    assert first == f"transcribe has no option {wrong}. Did you mean {near}?"
    assert listed.split(", ")[0] == near
    assert set(listed.split(", ")) == set(get_type_hints(python.SpeechCall))
    assert caught.value.param == wrong


def test_an_option_of_another_method_is_unknown(dry):
    with pytest.raises(RequestError, match=r"^embed has no option style\. Its options are pooling, "):
        dry.embed(WEEK, style="brief")
    with pytest.raises(RequestError, match=r"^score has no option pooling"):
        dry.score(WEEK, WEEK, pooling="mean")
    with pytest.raises(RequestError, match="task"):
        next(dry.as_completed("sing", [WEEK], louder=True))


def test_a_question_may_be_a_text_in_a_stream_too(dry):
    (answer,) = dry.as_completed("chat", [WEEK], messages="What is it?")
    assert answer.text == dry.chat(WEEK, "What is it?").text


# How answers show themselves


def test_an_answer_has_what_its_output_has(ears, dry):
    answer = ears.transcribe(WEEK, timestamps=True)
    assert (answer.text, answer.language) == ("see you next week", "en")
    assert [word.text for word in answer.words] == answer.text.split()
    assert answer.segments == answer.output.segments
    assert dry.caption(WEEK).text == "[dry-run] caption of 1.27 s"
    assert dry.analyze(WEEK).text == "[dry-run] analyze of 1.27 s"
    with pytest.raises(AttributeError, match="Embedding has no text"):
        _ = dry.embed(WEEK).text
    with pytest.raises(AttributeError, match="Caption has no words"):
        _ = dry.caption(WEEK).words


def test_answers_are_rows_of_a_table(ears, dry):
    good, bad = (one.to_dict() for one in ears.transcribe([WEEK, "/nowhere.wav"], timestamps=True))
    assert (good["index"], good["file"], good["text"]) == (0, str(WEEK), "see you next week")
    assert good["words"][0].keys() == {"text", "start", "end", "confidence", "speaker", "channel"}
    assert bad == {
        "index": 1,
        "error": {"code": "source_not_found", "message": "no such file: /nowhere.wav"},
        "id": None,
    }
    assert json.loads(json.dumps([good, bad])) == [good, bad]
    vectors = dry.analyze(WEEK).to_dict()
    assert json.loads(json.dumps(vectors)) == vectors
    assert (vectors["text"], len(vectors["values"][0])) == ("[dry-run] analyze of 1.27 s", 1280)


def test_a_line_says_what_an_answer_is(ears, dry):
    assert re.fullmatch(
        rf"Answer\(index=0, file='{re.escape(str(WEEK))[:20]}.*', text='see you next week', words=<4>, segments=<1>, "
        r"language='en', duration_sec=1\.268, elapsed_sec=[\d.]+\)",
        repr(ears.transcribe(WEEK, timestamps=True)),
    )
    assert "values=<float32 (" in repr(dry.embed(WEEK))
    assert repr(dry) == "ModelBundle(model='nvidia/audio-flamingo-3-hf', device='auto')"
    with python.load(Settings(skip_model_load=True, model="pocketsphinx")) as bundle:
        pass
    assert repr(bundle).endswith(", closed)")


def test_a_notebook_shows_an_answer_as_html(ears):
    good, bad = ears.transcribe([WEEK, "/<b>.wav"], timestamps=True)
    assert ">see you next week</span>" in good._repr_html_()
    assert "<summary>4</summary><table><tr><th>text</th><th>start</th><th>end</th></tr><tr><td>see</td>" in (
        good._repr_html_()
    )
    assert "/&lt;b&gt;.wav" in bad._repr_html_()
    assert "<b>" not in bad._repr_html_()


def test_what_a_notebook_shows_is_bounded():
    words = tuple(Span("so", n, n + 1) for n in range(1000))
    answer = python.Answer(0, "a.wav", Transcript("so " * 100_000, words), 1000.0, 1.0)
    assert "and 900 more" in answer._repr_html_()
    assert "(300000 characters)" in answer._repr_html_()
    assert len(answer._repr_html_()) < 20_000
    assert len(repr(answer)) < 200


def test_answers_come_as_they_are_done_and_leaving_early_drops_the_rest(dry):
    paths = [str(path) for path in sorted(DIGITS.glob("*.flac"))[:6]]
    assert sorted(one.index for one in dry.as_completed("caption", paths)) == [0, 1, 2, 3, 4, 5]
    for one in dry.as_completed("caption", paths):
        assert one.file in paths
        break
    assert len(dry.caption(paths, progress=True)) == 6


def test_leaving_early_drops_what_is_left_to_do():
    heard: list[float] = []

    class Slow(Echo):
        def infer(self, batch: Batch) -> list[Output]:
            heard.append(time.sleep(0.05) or batch.padded_sec)
            return super().infer(batch)

    engine = Engine(
        Settings(model="pocketsphinx", batch_max_items=1, models_memory_gb=1), create_backend=lambda model: Slow()
    )
    with python.ModelBundle(engine) as bundle:
        clips = [np.full(1600, 0.5)] * 40
        for _ in zip(bundle.as_completed("transcribe", clips, sample_rate=16_000), range(2), strict=False):
            pass
        bundle.transcribe(clips[0], sample_rate=16_000)
        assert len(heard) < 20


def test_more_inputs_than_a_payload_may_have(dry):
    few = Settings(skip_model_load=True, max_inputs=2)
    with python.load(few) as bundle:
        assert len(bundle.transcribe([str(WEEK)] * 5)) == 5


def test_threads_share_a_bundle(dry):
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(dry.transcribe(WEEK).output.text)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_recordings_are_scored_against_a_reference(echo, tmp_path):
    low, silent = tone(tmp_path / "low.wav", 1.0), tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 16_000)
    assert echo.score(low, low)["sim_score"] == pytest.approx(1.0)
    same, quiet, missing = echo.score([low, silent, tmp_path / "none.wav"], low)
    assert (same["audio_sim_score"], quiet["audio_sim_score"]) == (pytest.approx(1.0), 0.0)
    assert quiet["text_sim_score"] < 1 == same["text_sim_score"]
    assert (missing.index, missing.error.code) == (2, "source_not_found")
    with pytest.raises(SourceNotFound):
        echo.score([low], tmp_path / "none.wav")


# Arrays


def wave(rate: int, channels: int = 1, seconds: float = 0.5) -> np.ndarray:
    mono = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return mono if channels == 1 else np.repeat(mono[:, None], channels, axis=1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize(
    "shape",
    [
        lambda x: x,
        lambda x: x.astype(np.float32),
        lambda x: (x * 32_767).astype(np.int16),
        lambda x: np.stack([x, x]),
        lambda x: np.stack([x] * 3, axis=1),
        lambda x: x[None],
        lambda x: (np.stack([x, x]) * 32_767).astype(np.int16),
        lambda x: (x * (2**31 - 1)).astype(np.int32),
        lambda x: (np.stack([x, x], axis=1) * (2**31 - 1)).astype(np.int32),
        lambda x: (x * 32_767).astype(">i2"),
    ],
    ids=[
        "float64",
        "float32",
        "int16",
        "channels first",
        "channels last",
        "one channel",
        "int16 stereo",
        "int32",
        "int32 stereo",
        "int16 big-endian",
    ],
)
def test_an_array_is_heard_as_the_same_tone_at_16_khz(echo, rate, shape):
    heard = echo.embed(shape(wave(rate)), sample_rate=rate).output.values[:, 0]
    expected = wave(16_000)
    assert len(heard) == len(expected)
    middle = slice(800, -800)  # a resampler rings at the ends
    np.testing.assert_allclose(heard[middle], expected[middle], atol=2e-3)


def test_at_16_khz_not_a_sample_is_changed(echo):
    samples = np.random.default_rng(1).uniform(-2, 2, 5_000).astype(np.float32)
    np.testing.assert_array_equal(echo.embed(samples, sample_rate=16_000).output.values[:, 0], samples)


def test_a_wrong_array_is_an_error_in_its_place(echo):
    wrong = [
        np.zeros((3, 4, 5)),
        np.zeros((7, 7)),
        np.zeros(10, np.int64),
        np.array(["a"]),
        np.full(900, np.nan),
        np.zeros(0),
    ]
    answers = echo.embed([*wrong, wave(16_000)], sample_rate=16_000)
    assert [one.error.code for one in answers[:-1]] == ["invalid_input"] * 4 + ["decode_failed", "empty_audio"]
    assert len(answers[-1].output.values) == 8_000
    with pytest.raises(InputError, match="floats, int16 or int32, not int64"):
        echo.embed(wrong[2], sample_rate=16_000)


@pytest.mark.parametrize("rate", [None, 0, 10**7])
def test_an_array_needs_a_sample_rate(echo, rate):
    with pytest.raises(RequestError, match="sample_rate"):
        echo.embed(wave(16_000), **({} if rate is None else {"sample_rate": rate}))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(9, 300), st.booleans(), st.booleans())
def test_channels_are_the_shorter_axis_and_mixed_by_their_mean(channels, samples, first, whole):
    array = np.random.default_rng(samples).uniform(-1, 1, (samples, channels))
    array = (array * 32_767).astype(np.int16) if whole else array
    mixed = arrays.mono(array.T if first else array)
    floats = mixed / 32_768 if mixed.dtype == np.int16 else mixed
    np.testing.assert_allclose(floats, array.mean(axis=1) / (32_768 if whole else 1), atol=1e-4)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs a CUDA device")
def test_torchaudio_resamples_on_the_gpu():
    pytest.importorskip("torch")
    pytest.importorskip("torchaudio")
    done = arrays._resample_on_gpu(wave(48_000).astype(np.float32), 48_000)
    np.testing.assert_allclose(done[800:-800], wave(16_000)[800:-800], atol=2e-3)


def test_hundreds_of_arrays_need_few_open_files():
    code = (
        "import resource, numpy; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); import worker\n"
        "with worker.load_model() as bundle:\n"
        "    answers = bundle.transcribe([numpy.zeros(1600) for _ in range(300)], sample_rate=16000)\n"
        "print(sum(isinstance(one, worker.Answer) for one in answers))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "SKIP_MODEL_LOAD": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "300\n"


def test_a_path_whose_bytes_are_no_utf8_is_read_in_its_place(dry, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    shutil.copy(WEEK, path)
    first, missing, second = dry.transcribe([os.fsdecode(path), os.fsdecode(path + b"x"), WEEK])
    assert (first.file, first.duration_sec) == (os.fsdecode(path), second.duration_sec)
    assert missing.error.code == "source_not_found"
    assert missing.error.message == f"no such file: {tmp_path}/caf?.wavx"


def test_nothing_of_a_request_is_held_after_it(echo):
    """Neither after it is done, nor after its caller has left early."""
    clips = [wave(16_000, seconds=0.1) for _ in range(30)]
    left = [weakref.ref(clip) for clip in clips]
    assert len(echo.transcribe(clips, sample_rate=16_000)) == 30
    del clips
    gc.collect()
    assert not [ref for ref in left if ref() is not None]

    clips = [wave(16_000, seconds=0.1) for _ in range(30)]
    left = [weakref.ref(clip) for clip in clips]
    for _ in zip(echo.as_completed("transcribe", clips, sample_rate=16_000), range(1), strict=False):
        pass
    del clips
    deadline = time.monotonic() + 10
    while [ref for ref in left if ref() is not None]:
        assert time.monotonic() < deadline, "an array is held"
        gc.collect()
        time.sleep(0.05)


# Loading and closing


def test_closing_twice_is_fine_and_afterwards_it_says_so():
    before = threading.active_count()
    bundle = python.load(Settings(skip_model_load=True))
    assert threading.active_count() > before
    with bundle:
        pass
    bundle.close()
    assert threading.active_count() <= before + 1  # the loader's own may be about to end
    with pytest.raises(ModelUnavailable, match="closed"):
        bundle.transcribe(WEEK)


def test_a_program_that_never_closes_ends():
    code = "import worker; print(worker.load_model().transcribe('samples/week.wav').output.text)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "SKIP_MODEL_LOAD": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[dry-run] transcribe of 1.27 s\n", "")


@pytest.mark.slow
def test_what_cannot_be_loaded_says_why_and_leaves_nothing(tmp_path):
    before = threading.active_count()
    with pytest.raises(ModelNotFound, match="nonesuch"):
        runner.load_model(model="nonesuch")
    with pytest.raises(ConfigError, match="no such folder"):
        runner.load_model(model_dir=tmp_path / "none")
    with pytest.raises(AviaryError, match=r"no such file|not a whole|nemo"):
        runner.load_model(model=str(tmp_path / "none.nemo"))
    assert threading.active_count() <= before + 1
