"""Scoring: on tiny checkpoints where it matters what is heard, on the dry run where it matters what is done and
kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, encode, tone

from worker.backends import create
from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import (
    Cancelled,
    ClipNotFound,
    DecodeFailed,
    ModelError,
    ModelUnavailable,
    ReferenceFailed,
    RequestError,
)
from worker.scoring.scorer import Scorer
from worker.types import Embedding, Source, Transcript

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
WHISPER = {"key": "whisper-small", "type": "whisper", "model_id": "openai/whisper-small"}
HIGGS = {
    "key": "higgs-audio-v2",
    "type": "higgs_audio",
    "model_id": "bosonai/higgs-audio-v2-understanding-3B",
    "processor_id": "openai/whisper-large-v3-turbo",
    "transcriber_id": "openai/whisper-small",
}
SPOKEN = {"PeppaPig-s06e02_part01": "week.wav", "under_scored-video_c-1": "doctor.flac", "v_train": "train.mp4"}


class Counting(Engine):
    """The real engine, which tells what was submitted to it."""

    def __init__(self, settings: Settings, **options) -> None:
        self.requests = []
        super().__init__(settings, **options)

    def submit(self, request, **options):
        self.requests.append(request)
        return super().submit(request, **options)


def write(folder: Path, *models: dict) -> Path:
    """A config.json in the folder, with its clips in `clips`."""
    (folder / "clips").mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {
                "models": models or [WHISPER],
                "video_clip_dir": "clips",
                "cache_dir": "cache",
                "target_sampling_rate": 16000,
            }
        )
    )
    return path


def at(path: Path) -> Source:
    return Source("path", str(path), trusted=True)


def kept(folder: Path) -> dict[Path, int]:
    """The files of the cache with the times of their last change."""
    return {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*") if path.is_file()}


# What is heard


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """Scoring with the documented models, and a third whose words are real ones: Higgs's features, pocketsphinx's
    words."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    import torch
    import transformers
    from fixtures import tiny_whisper
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("heard")
    models = folder / "models"
    small = tiny_whisper.save(models / "whisper-small", positions=40, seed=3)
    shutil.copytree(small, models / "whisper-large-v3-turbo", ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {
        "num_mel_bins": 80,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 48,
        "max_source_positions": 1500,
    }
    torch.manual_seed(0)
    encoder = transformers.AudioFlamingo3Encoder(transformers.AudioFlamingo3EncoderConfig(**sizes))
    higgs = models / "higgs-audio-v2-understanding-3B"
    higgs.mkdir()
    (higgs / "config.json").write_text(json.dumps({"audio_encoder_config": sizes}))
    tensors = {f"audio_tower.{name}": tensor.clone() for name, tensor in encoder.state_dict().items()}
    save_file(tensors, higgs / "model.safetensors")
    config = write(folder, WHISPER, HIGGS, HIGGS | {"key": "real-words", "transcriber_id": "pocketsphinx"})
    for name, sample in SPOKEN.items():
        encode(SAMPLES / sample, folder / "clips" / f"{name}.mov", "-t", "2")
    settings = Settings(device="cpu", model_dir=models, decode_workers=2, hf_hub_offline=True)
    with Counting(settings) as engine, Scorer.open(config, engine, settings) as scorer:
        scorer.ready.result(60)
        yield scorer, engine, folder


def test_every_documented_model_scores_and_the_first_is_the_default(heard):
    scorer, engine, folder = heard
    assert scorer.progress.models == dict.fromkeys(("whisper-small", "higgs-audio-v2", "real-words"), "loaded")
    assert (scorer.progress.references, scorer.progress.done, scorer.progress.failed) == (9, 9, {})
    for key in (None, "higgs-audio-v2"):
        before = len(engine.requests)
        score = scorer.score("under_scored-video", "c-1", at(folder / "clips" / "v_train.mov"), key).result(60)
        assert list(score) == ["model", "sim_score", "audio_sim_score", "text_sim_score"]
        assert score["model"] == (key or "whisper-small")
        assert [type(value) for value in score.values()] == [str, float, float, float]
        assert score["sim_score"] == pytest.approx((score["audio_sim_score"] + score["text_sim_score"]) / 2)
        assert json.loads(json.dumps(score)) == score
        assert len(engine.requests) == before + 1, "both halves are one request, decoded once"


@pytest.mark.parametrize("key", ["whisper-small", "higgs-audio-v2"])
def test_nothing_is_more_alike_than_the_clip_itself(heard, key):
    scorer, _, folder = heard
    for name in SPOKEN:
        scores = {
            other: scorer.score(*name.rsplit("_", 1), at(folder / "clips" / f"{other}.mov"), key).result(60)
            for other in SPOKEN
        }
        audio = {other: score["audio_sim_score"] for other, score in scores.items()}
        assert audio[name] > 0.99999
        assert scores[name]["text_sim_score"] == 1
        assert all(audio[other] < 0.9995 for other in SPOKEN if other != name), audio


def test_higgs_takes_the_features_of_the_processor_that_is_named(heard, tmp_path):
    import torch
    import transformers

    from worker.backends import higgs
    from worker.backends.common import audio_tower

    _, engine, folder = heard
    names = {"own": {"n_fft": 512}, "wide": {"feature_size": 128}}
    for name, sizes in names.items():
        transformers.WhisperFeatureExtractor(**sizes).save_pretrained(tmp_path / name)
        shutil.copy(folder / "models" / "whisper-small" / "config.json", tmp_path / name)
    config = write(tmp_path, HIGGS, *(HIGGS | {"key": name, "processor_id": str(tmp_path / name)} for name in names))
    shutil.copy(SAMPLES / "doctor.flac", tmp_path / "clips" / "v_1.flac")
    with Scorer.open(config, engine, engine.settings) as scorer:
        scorer.ready.result(60)
        assert scorer.progress.models["own"] == "loaded"
        assert "requires 80 mel bands" in scorer.progress.models["wide"]
        assert scorer.score("v", "1", at(SAMPLES / "doctor.flac"), "own").result(60)["audio_sim_score"] > 0.99999
    features = {path.parents[2].name: np.array(json.loads(path.read_bytes())["features"]) for path in kept(tmp_path)}
    assert features.keys() == {"higgs-audio-v2", "own"}
    assert not np.allclose(features["own"], features["higgs-audio-v2"], atol=1e-3)
    checkpoint = folder / "models" / "higgs-audio-v2-understanding-3B"
    alone = audio_tower.load_tower(
        checkpoint, higgs._config(transformers, checkpoint), torch.float32, torch.device("cpu")
    )
    samples, _ = soundfile.read(SAMPLES / "doctor.flac", dtype="float32")
    with torch.inference_mode():
        (states,) = audio_tower.states(
            alone, transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "own"), [samples]
        )
    assert np.allclose(features["own"], states.mean(axis=0), atol=1e-4)


def test_audio_is_the_cosine_of_the_masked_states(heard, tmp_path):
    """Against the encoder called by hand. Over the padding too, whatever is said would be alike."""
    import torch
    import transformers

    scorer, _, folder = heard
    small = folder / "models" / "whisper-small"
    model = transformers.WhisperForConditionalGeneration.from_pretrained(small).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(small)
    clips = [
        soundfile.read(SAMPLES / "doctor.flac", dtype="float32")[0],
        soundfile.read(DIGITS / "07.flac", dtype="float32")[0],
    ]
    made = extractor(clips, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    with torch.inference_mode():
        states = model.model.encoder(made["input_features"]).last_hidden_state.numpy()
    frames = (made["attention_mask"].sum(-1).numpy() + 1) // 2
    masked = cosine(*(row[:count].mean(axis=0) for row, count in zip(states, frames, strict=True)))
    config = write(tmp_path)
    shutil.copy(SAMPLES / "doctor.flac", tmp_path / "clips" / "v_1.flac")
    engine = scorer._engine
    with Scorer.open(config, engine, engine.settings) as exact:
        score = exact.score("v", "1", at(DIGITS / "07.flac")).result(60)
    assert score["audio_sim_score"] == pytest.approx(masked, abs=1e-4)
    assert abs(score["audio_sim_score"] - cosine(*states.mean(axis=1))) > 0.005


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_text_is_what_was_said(heard, tmp_path):
    scorer, _, _ = heard
    upload = at(encode(SAMPLES / "week.wav", tmp_path / "week.ogg"))
    assert scorer.score("PeppaPig-s06e02", "part01", upload, "real-words").result(60)["text_sim_score"] > 0.9
    for name in ("under_scored-video_c-1", "v_train"):
        assert scorer.score(*name.rsplit("_", 1), upload, "real-words").result(60)["text_sim_score"] < 0.65


def test_a_restart_computes_nothing(heard):
    scorer, engine, folder = heard
    before, asked = kept(folder), len(engine.requests)
    assert len(before) == 9
    with Scorer.open(folder / "config.json", engine, engine.settings) as again:
        again.ready.result(60)
        assert again.progress.done == 9
        assert len(engine.requests) == asked
        recording = at(SAMPLES / "week.wav")
        assert again.score("v", "train", recording).result(60) == scorer.score("v", "train", recording).result(60)
    assert kept(folder) == before


# What is done and kept


@pytest.fixture
def settings(tmp_path):
    return Settings(skip_model_load=True, data_dir=tmp_path / "data", decode_workers=2)


@pytest.fixture
def engine(settings):
    before = set(threading.enumerate())
    with Counting(settings) as made:
        yield made
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Three clips of one, two and three seconds, and a recording."""
    made = tmp_path_factory.mktemp("tones")
    write(made)
    for number in (1, 2, 3):
        encode(tone(made / "tone.wav", number), made / "clips" / f"a-video_part_{number}.mov")
    return made


@pytest.fixture
def folder(tmp_path, tones):
    return shutil.copytree(tones, tmp_path, dirs_exist_ok=True)


def opened(folder: Path, engine: Engine) -> Scorer:
    return Scorer.open(folder / "config.json", engine, engine.settings)


def test_a_clip_is_found_by_its_whole_stem_in_folders_too(folder, engine):
    clips = folder / "clips"
    (clips / "season").mkdir()
    (clips / "my_video").mkdir()
    shutil.copy(folder / "tone.wav", clips / "season" / "deep_1.WAV")
    shutil.copy(folder / "tone.wav", clips / "my_video" / "part-7.wav")
    shutil.copy(folder / "tone.wav", clips / "a-video_part_1.wav")
    (folder / "elsewhere").mkdir()
    shutil.copy(folder / "tone.wav", folder / "elsewhere" / "2.wav")
    (clips / "linked").symlink_to(folder / "elsewhere")
    (clips / "linked" / "around").symlink_to(clips)
    shutil.copy(folder / "tone.wav", clips / "._a-video_part_9.mov")
    (clips / "a-video_notes.txt").touch()
    with opened(folder, engine) as scorer:
        for uid, cid in (
            ("a-video", "part_1"),
            ("a-video_part", "1"),
            ("deep", "1"),
            ("my_video", "part-7"),
            ("linked", "2"),
        ):
            assert scorer.has_clip(uid, cid)
        for uid, cid in (
            ("a", "video_part_1"),
            ("a-video", "part_9"),
            ("a-video", "notes"),
            ("a-video", ""),
            ("", ""),
            ("a-video", "*"),
            ("../clips/a-video", "part_1"),
            ("A-video", "part_1"),
        ):
            assert not scorer.has_clip(uid, cid)
        assert scorer._references.find("a-video", "part_1").suffix == ".mov"
        scorer.ready.result(60)
        assert scorer.progress.done == scorer.progress.references == 6


def test_what_is_unknown_is_told_before_anything_runs(folder, engine):
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
        asked = len(engine.requests)
        for call in (scorer.check, lambda *names: scorer.score(*names[:2], at(folder / "none.wav"), *names[2:])):
            with pytest.raises(ClipNotFound, match="'part_4' of video 'a-video'") as caught:
                call("a-video", "part_4")
            assert caught.value.status == 404
            with pytest.raises(RequestError, match="'whisper' does not score; use one of whisper-small") as caught:
                call("a-video", "part_1", "whisper")
            assert (caught.value.status, caught.value.param) == (400, "model")
        scorer.check("a-video", "part_1", "whisper-small")
        assert len(engine.requests) == asked


def test_a_recording_that_is_no_audio_is_its_own_error_and_nobody_elses(folder, engine):
    noise = folder / "noise.mp3"
    noise.write_bytes(bytes(range(256)) * 40)
    with opened(folder, engine) as scorer:
        bad, good = (
            scorer.score("a-video", "part_1", at(noise)),
            scorer.score("a-video", "part_1", at(folder / "tone.wav")),
        )
        with pytest.raises(DecodeFailed):
            bad.result(60)
        assert good.result(60)["text_sim_score"] > 0.5


def test_a_reference_that_cannot_be_read_is_told_and_the_others_serve(folder, engine):
    broken = folder / "clips" / "a-video_broken.mov"
    broken.write_bytes(bytes(range(256)) * 40)
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
        assert list(scorer.progress.failed) == ["whisper-small/a-video_broken.mov"]
        assert scorer.score("a-video", "part_2", at(folder / "tone.wav")).result(60)
        asked = len(engine.requests)
        with pytest.raises(ReferenceFailed, match=r"a-video_broken\.mov cannot be read"):
            scorer.score("a-video", "broken", at(folder / "tone.wav")).result(60)
        assert len(engine.requests) == asked + 1, "only the reference was tried again"
        shutil.copy(folder / "clips" / "a-video_part_1.mov", broken)
        assert scorer.score("a-video", "broken", at(folder / "tone.wav")).result(60)
        (folder / "clips" / "a-video_part_3.mov").unlink()
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
        assert scorer.progress.failed == {}


def test_a_reference_that_went_away_is_told(folder, engine):
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
        scorer._references._results.clear()
        (folder / "clips" / "a-video_part_3.mov").unlink()
        with pytest.raises(ReferenceFailed, match="No such file"):
            scorer.score("a-video", "part_3", at(folder / "tone.wav")).result(60)


def test_a_damaged_file_of_the_cache_is_computed_anew(folder, engine):
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
    whole = {path: path.read_text() for path in sorted(kept(folder))}
    assert [path.relative_to(folder / "cache").parts[:-1] for path in whole] == [
        ("whisper-small", "a-video_part", number) for number in "123"
    ]
    hurt = list(whole)[1]
    for damage in (
        "",
        "null",
        '{"text": "a"}',
        '{"text": "a", "features": []}',
        '{"text": "a", "features": [NaN]}',
        "\0\0",
        whole[hurt][:40],
    ):
        hurt.write_text(damage)
        asked = len(engine.requests)
        with opened(folder, engine) as scorer:
            scorer.ready.result(60)
            assert scorer.progress.failed == {}
        assert len(engine.requests) == asked + 1
        assert {path: path.read_text() for path in kept(folder)} == whole


def test_a_clip_that_changed_is_computed_anew_and_the_old_is_kept(folder, engine):
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
    before = kept(folder)
    encode(tone(folder / "tone.wav", 5), folder / "clips" / "a-video_part_1.mov")
    asked = len(engine.requests)
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
        assert (
            scorer.score("a-video", "part_1", at(folder / "clips" / "a-video_part_1.mov")).result(60)["text_sim_score"]
            == 1
        )
    assert len(engine.requests) == asked + 2
    assert before.items() < kept(folder).items()


def test_a_dry_run_leaves_nothing_that_a_real_one_would_take_for_its_own(folder, engine):
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
    real = Settings(data_dir=folder / "data", decode_workers=2)
    with Counting(real, create_backend=lambda model: create(model, engine.settings)) as other:
        with opened(folder, other) as scorer:
            scorer.ready.result(60)
        assert len(other.requests) == 3


def test_without_a_place_to_keep_it_scoring_goes_on(folder, engine):
    (folder / "cache").touch()
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
        assert scorer.progress.failed == {}
        assert scorer.score("a-video", "part_1", at(folder / "tone.wav")).result(60)


def test_processes_share_a_cache(folder, engine):
    code = (
        "import sys; from pathlib import Path; from worker.config import Settings; "
        "from worker.engine.engine import Engine; "
        "from worker.scoring.scorer import Scorer\n"
        "settings = Settings(skip_model_load=True, decode_workers=2, data_dir=Path(sys.argv[2]))\n"
        "with Engine(settings) as engine, Scorer.open(Path(sys.argv[1]), engine, settings) as scorer:\n"
        "    scorer.ready.result(60); assert scorer.progress.done == 3 and not scorer.progress.failed"
    )
    command = [sys.executable, "-c", code, str(folder / "config.json"), str(folder / "data")]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    with opened(folder, engine) as scorer:
        scorer.ready.result(60)
    assert engine.requests == []
    assert [path.suffix for path in kept(folder)] == [".json"] * 3


# Models


MISSING = {"key": "missing", "type": "whisper", "model_id": "/no/such/folder"}
BROKEN = {"key": "broken", "type": "whisper", "model_id": "openai/whisper-base"}


def fussy(settings: Settings):
    """The dry run, which cannot load one of the models."""

    def make(model):
        if model.id == "openai/whisper-base":
            raise OSError("the file is torn")
        return create(model, settings)

    return make


def test_a_model_that_cannot_be_loaded_is_left_out(folder, settings):
    write(
        folder,
        MISSING,
        BROKEN,
        {"key": "no-embedder", "type": "model", "model_id": "parakeet"},
        HIGGS | {"key": "not-higgs", "model_id": "whisper"},
        WHISPER | {"key": "not-whisper", "model_id": "higgs"},
        {"key": "flamingo", "type": "model", "model_id": "audio-flamingo"},
    )
    reasons = {
        "missing": "unknown model",
        "broken": "the file is torn",
        "no-embedder": "cannot embed",
        "not-higgs": "is not of type higgs_audio",
        "not-whisper": "is not of type whisper",
        "flamingo": "loaded",
    }
    with Counting(settings, create_backend=fussy(settings)) as engine, opened(folder, engine) as scorer:
        early = scorer.score("a-video", "part_1", at(folder / "tone.wav"))
        scorer.ready.result(60)
        assert list(scorer.progress.models) == list(reasons)
        for key, why in reasons.items():
            assert why in scorer.progress.models[key]
        assert early.result(60)["model"] == "flamingo"
        assert scorer.score("a-video", "part_1", at(folder / "tone.wav")).result(60)["model"] == "flamingo"
        assert scorer.progress.references == 3
        with pytest.raises(ModelUnavailable, match="torn"):
            scorer.check("a-video", "part_1", "broken")
        with pytest.raises(RequestError, match=r"use one of flamingo$"):
            scorer.check("a-video", "part_1", "none")


def test_none_left_is_an_error_that_says_why_of_each(folder, settings):
    write(folder, MISSING, BROKEN)
    with Counting(settings, create_backend=fussy(settings)) as engine, opened(folder, engine) as scorer:
        with pytest.raises(ModelUnavailable, match=r"missing: unknown model.+; broken: .+torn"):
            scorer.ready.result(60)
        with pytest.raises(ModelUnavailable, match="torn"):
            scorer.score("a-video", "part_1", at(folder / "tone.wav")).result(60)
        assert engine.requests == []


class Held(Backend):
    """A backend that waits to be let go, and gives features of its choosing."""

    def __init__(self, value: float = 1.0) -> None:
        self.gate, self.started, self.value = threading.Event(), threading.Event(), value

    def load(self) -> None:
        pass

    def infer(self, batch):
        self.started.set()
        self.gate.wait(20)
        embedding = Embedding(np.full(4, self.value, np.float32), 25.0, "mean")
        return [embedding if piece.options.task == "embed" else Transcript("words") for piece in batch.pieces]


def test_features_that_are_no_numbers_are_an_error_and_are_not_kept(folder, settings):
    backend = Held(float("nan"))
    backend.gate.set()
    with Counting(settings, create_backend=lambda _: backend) as engine, opened(folder, engine) as scorer:
        scorer.ready.result(60)
        assert len(scorer.progress.failed) == 3
        with pytest.raises(ModelError, match="not finite numbers"):
            scorer.score("a-video", "part_1", at(folder / "tone.wav")).result(60)
    assert kept(folder) == {}


def test_open_returns_before_anything_is_heard_and_close_leaves_nobody_waiting(folder, settings):
    backend = Held()
    with Counting(settings, create_backend=lambda _: backend) as engine:
        before = set(threading.enumerate())
        scorer = opened(folder, engine)
        assert backend.started.wait(20)
        assert scorer.has_clip("a-video", "part_1")
        assert not scorer.ready.done()
        future = scorer.score("a-video", "part_1", at(folder / "tone.wav"))
        scorer.close()
        scorer.close()
        for one in (future, scorer.ready, scorer.score("a-video", "part_2", at(folder / "tone.wav"))):
            with pytest.raises(Cancelled):
                one.result(20)
        assert set(threading.enumerate()) - before <= {lane._thread for lane in engine._runners}
        backend.gate.set()


def test_a_score_does_not_wait_for_references_of_others(folder, settings):
    """A hundred clips to be computed; the last in the alphabet is asked for at once."""
    for number in range(100):
        (folder / "clips" / f"b_{number:03}.wav").write_bytes((folder / "tone.wav").read_bytes() + bytes(number))
    backend = Held()
    with Counting(settings, create_backend=lambda _: backend) as engine, opened(folder, engine) as scorer:
        assert backend.started.wait(20)
        future = scorer.score("b", "099", at(folder / "tone.wav"))
        backend.gate.set()
        assert future.result(20)["audio_sim_score"] == pytest.approx(1)
        assert scorer.progress.done < 60
        scorer.ready.result(60)
        assert scorer.progress.done == 103


def test_a_cancelled_score_is_dropped(folder, settings):
    backend = Held()
    with Counting(settings, create_backend=lambda _: backend) as engine, opened(folder, engine) as scorer:
        future = scorer.score("a-video", "part_1", at(folder / "tone.wav"))
        assert backend.started.wait(20)
        assert future.cancel()
        backend.gate.set()
        scorer.ready.result(60)
        assert len(engine.requests) == 3, "the recording was never submitted"
