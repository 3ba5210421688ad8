"""Honest checkpoints load through the vetting: what NeMo 2.3 to 3.0 saves, of every kind of the two families."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from conftest import DIGITS, FIXTURES, LABELS

from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.types import Batch, Clip, Options, Piece, Transcript

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from fixtures import train_parakeet

PARAKEET, CANARY, CTC = (FIXTURES / f"{name}-digits.nemo" for name in ("parakeet", "canary", "ctc"))
CLIPS = [Clip(soundfile.read(DIGITS / name, dtype="float32")[0]) for name in sorted(LABELS)[:3]]

# What NeMo 2.5 writes into `decoding` after change_decoding_strategy. 3.0.0 fails on such a boosting_tree.
BOOSTING = {
    "model_path": None,
    "key_phrases_file": None,
    "key_phrases_list": None,
    "context_score": 1.0,
    "depth_scaling": 2.0,
    "unk_score": 0.0,
    "source_lang": "en",
    "use_triton": True,
    "use_bpe_dropout": False,
}
CONFIDENCE = {"name": "entropy", "entropy_type": "tsallis", "alpha": 0.33, "temperature": "DEPRECATED"}
GREEDY = {
    "max_symbols_per_step": 10,
    "preserve_alignments": False,
    "preserve_frame_confidence": False,
    "confidence_method_cfg": CONFIDENCE,
    "ngram_lm_model": None,
    "ngram_lm_alpha": 0.0,
    "boosting_tree": BOOSTING,
    "boosting_tree_alpha": 0.0,
}
DATA = {
    "use_lhotse": True,
    "input_cfg": [{"type": "nemo_tarred", "manifest_filepath": "/data/train.json"}],
    "manifest_filepath": "${oc.env:MANIFEST}",
    "bucket_duration_bins": [[1.0, 2], [3.0, 4]],
    "tarred_audio_filepaths": None,
    "augmentor": {"_target_": "someone.training.Noise"},
}


def transducer_of_2_5(c: dict[str, Any]) -> None:
    c["nemo_version"] = "2.5.0"
    c["decoding"]["greedy"] |= GREEDY
    c["decoding"]["beam"] |= {"boosting_tree": BOOSTING, "boosting_tree_alpha": 0.0}
    c["decoding"] |= {
        "strategy": "malsd_batch",
        "confidence_cfg": {"preserve_word_confidence": False, "method_cfg": CONFIDENCE},
        "compute_timestamps": None,
        "word_seperator": " ",
        "segment_seperators": [".", "!", "?"],
        "rnnt_timestamp_type": "all",
        "temperature": 1.0,
        "big_blank_durations": [],
    }


def published_v3(c: dict[str, Any]) -> None:
    """The sections of parakeet-tdt-0.6b-v3 that the tiny model lacks."""
    c["nemo_version"] = "2.4.0rc0"
    c["train_ds"] = c["validation_ds"] = c["test_ds"] = DATA  # shared: YAML writes an anchor and aliases
    c["rnnt_reduction"], c["skip_nan_grad"] = "mean_volume", False
    c["interctc"] = {"loss_weights": [], "apply_at_layers": []}
    c["spec_augment"] = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 2}
    c["encoder"] |= {"att_context_style": "regular", "conv_context_size": None, "reduction": None}
    c["joint"] |= {"fuse_loss_wer": True, "fused_batch_size": 4}
    c["preprocessor"] |= {"dither": 1e-5, "pad_value": 0.0}
    c["optim"] = {"_target_": "torch.optim.AdamW", "lr": 1e-4, "sched": {"name": "CosineAnnealing"}}


def references(c: dict[str, Any]) -> None:
    c["encoder"]["feat_in"] = "${preprocessor.features}"
    c["preprocessor"]["sample_rate"] = "${sample_rate}"
    c["decoding"]["durations"] = "${model_defaults.tdt_durations}"


def whole_training_configuration(c: dict[str, Any]) -> None:
    model = dict(c)
    c.clear()
    c |= {"name": "mine", "trainer": {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}}}
    c["model"] = model


def moved_tokenizer(c: dict[str, Any]) -> None:
    """The folder of the machine that trained it, which is not here."""
    c["tokenizer"]["dir"] = "/home/someone/tokenizer"


def canary_of_2_5(c: dict[str, Any]) -> None:
    c["multitask_metrics_cfg"] = {"metrics": {"wer": {"_target_": "nemo.collections.asr.metrics.WER"}}}
    c["decoding"] = {
        "strategy": "beam",
        "return_best_hypothesis": True,
        "greedy": GREEDY | {"temperature": None, "n_samples": 1},
        "beam": {"beam_size": 1, "len_pen": 0.0, "max_generation_delta": 50, "boosting_tree": BOOSTING},
    }


def canary_without_folders(c: dict[str, Any]) -> None:
    """As other tools write it: NeMo alone would look for `dir`."""
    for one in c["tokenizer"]["langs"].values():
        del one["dir"]


def ctc_of_2_5(c: dict[str, Any]) -> None:
    c["decoding"] = {"strategy": "greedy_batch", "greedy": GREEDY | {"allow_cuda_graphs": True}}


def by_modules(c: dict[str, Any]) -> None:
    """Each class by the module that holds it."""
    modules = {"RNNTDecoder": "rnnt", "RNNTJoint": "rnnt", "ConformerEncoder": "conformer_encoder"}
    for section in ("decoder", "joint", "encoder"):
        package, _, name = c[section]["_target_"].rpartition(".")
        c[section]["_target_"] = f"{package}.{modules[name]}.{name}"
    c["target"] = "nemo.collections.asr.models.EncDecRNNTBPEModel"


def load(path: Path) -> Any:
    made = create(find(str(path)), Settings(device="cpu"))
    made.load()
    return made


def texts(backend: Any) -> list[Transcript]:
    return backend.infer(Batch(tuple(Piece(clip, Options("m")) for clip in CLIPS)))


@pytest.fixture(scope="module")
def expected() -> dict[Path, list[Transcript]]:
    return {path: texts(load(path)) for path in (PARAKEET, CANARY, CTC)}


@pytest.mark.parametrize(
    ("source", "change"),
    [
        (PARAKEET, transducer_of_2_5),
        (PARAKEET, published_v3),
        (PARAKEET, references),
        (PARAKEET, whole_training_configuration),
        (PARAKEET, moved_tokenizer),
        (PARAKEET, by_modules),
        (CANARY, canary_of_2_5),
        (CANARY, canary_without_folders),
        (CTC, ctc_of_2_5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_configurations_of_other_versions_give_the_same_texts(
    tmp_path, expected, source: Path, change: Callable[[dict[str, Any]], None]
):
    with tarfile.open(source) as archive, tarfile.open(tmp_path / "x.nemo", "w") as made:
        for member in archive.getmembers():
            content = archive.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith("model_config.yaml"):
                config = yaml.safe_load(content)
                change(config)
                content = yaml.safe_dump(config, sort_keys=False).encode()
                member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    assert texts(load(tmp_path / "x.nemo")) == expected[source]


def test_a_compressed_archive_loads(tmp_path, expected):
    with tarfile.open(CTC) as archive, tarfile.open(tmp_path / "old.nemo", "w:gz") as made:
        for member in archive.getmembers():
            made.addfile(member, archive.extractfile(member) if member.isfile() else None)
    assert texts(load(tmp_path / "old.nemo")) == expected[CTC]


def test_weights_and_buffers_are_those_of_nemos_own_restore():
    from nemo.collections.asr.models import ASRModel

    for path in (PARAKEET, CANARY, CTC):
        theirs, ours = ASRModel.restore_from(str(path), map_location="cpu"), load(path)._model
        assert type(ours) is type(theirs)
        mine = ours.state_dict()
        assert list(mine) == list(theirs.state_dict())
        assert all(torch.equal(mine[name], value) for name, value in theirs.state_dict().items())
        assert not ours.training


@pytest.mark.parametrize("kind", ["EncDecRNNTModel", "EncDecCTCModel", "EncDecHybridRNNTCTCModel"])
def test_models_of_characters_load(tmp_path, kind):
    """Without a tokenizer, and so without any file but configuration and weights."""
    import nemo.collections.asr as nemo_asr
    from omegaconf import open_dict

    torch.manual_seed(0)
    config = train_parakeet.config(d_model=32, layers=1)
    letters = list(" abcdefghijklmnopqrstuvwxyz")
    ctc = {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": 32,
        "num_classes": len(letters),
        "vocabulary": letters,
    }
    with open_dict(config):
        del config.tokenizer
        config.labels = letters
        if kind == "EncDecCTCModel":
            config.decoder, config.decoding = ctc, {"strategy": "greedy"}
            del config.joint, config.loss
        elif kind == "EncDecHybridRNNTCTCModel":
            config.aux_ctc = {"ctc_loss_weight": 0.3, "decoder": ctc, "decoding": {"strategy": "greedy"}}
    getattr(nemo_asr.models, kind)(cfg=config).save_to(str(tmp_path / "x.nemo"))
    outputs = texts(load(tmp_path / "x.nemo"))
    assert any(output.text for output in outputs)


def test_loading_leaves_the_working_folder_and_nemos_state_alone(monkeypatch, tmp_path):
    from nemo.utils.app_state import AppState

    monkeypatch.setattr(os, "chdir", lambda *_: pytest.fail("the working folder changed"))
    load(CTC)
    assert not AppState().is_model_being_restored
    assert AppState().nemo_file_folder is None


def test_handlers_that_the_application_adds_to_nemos_logger_keep_their_level():
    logger, handler = logging.getLogger("nemo_logger"), logging.NullHandler(logging.INFO)
    logger.addHandler(handler)
    try:
        backend = create(find(str(PARAKEET)), Settings(device="cpu"))
        backend.load()
        assert handler.level == logging.INFO
        assert logger.level == logging.ERROR
    finally:
        logger.removeHandler(handler)
