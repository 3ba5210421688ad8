"""Honest checkpoints load through the vetting: what NeMo 2.3 to 3.0 saves, of every kind of the two families."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import tarfile
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from conftest import DIGITS, FIXTURES, LABELS

from worker.backends import create
from worker.backends.base import Backend
from worker.backends.nemo.restore import restore, without_random_values
from worker.catalog import Model, find
from worker.catalog.nemo_file import Archive
from worker.config import Settings
from worker.engine.model_manager import ModelManager
from worker.errors import ModelUnavailable
from worker.types import Batch, Clip, Options, Piece, Transcript

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from fixtures import train_parakeet

PARAKEET, CANARY, CTC = (FIXTURES / f"{name}-digits.nemo" for name in ("parakeet", "canary", "ctc"))
LANGUAGES = FIXTURES / "canary-languages.nemo"
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
    assert texts(load(with_config(source, tmp_path / "x.nemo", change))) == expected[source]


def with_config(source: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the archive with a changed configuration."""
    with tarfile.open(source) as archive, tarfile.open(path, "w") as made:
        for member in archive.getmembers():
            content = archive.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith("model_config.yaml"):
                config = yaml.safe_load(content)
                change(config)
                content = yaml.safe_dump(config, sort_keys=False).encode()
                member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def test_a_compressed_archive_loads(tmp_path, expected):
    with tarfile.open(CTC) as archive, tarfile.open(tmp_path / "old.nemo", "w:gz") as made:
        for member in archive.getmembers():
            made.addfile(member, archive.extractfile(member) if member.isfile() else None)
    assert texts(load(tmp_path / "old.nemo")) == expected[CTC]


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers, under all their names, those that no checkpoint holds included."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return list(ours) == list(theirs) and all(
        ours[name].dtype == value.dtype and torch.equal(ours[name], value) for name, value in theirs.items()
    )


@pytest.mark.parametrize("path", [PARAKEET, CANARY, LANGUAGES, CTC], ids=lambda path: path.stem)
def test_every_tensor_is_that_of_nemos_own_restore(path):
    from nemo.collections.asr.models import ASRModel

    theirs, (ours, _) = ASRModel.restore_from(str(path), map_location="cpu"), restore(path, torch.device("cpu"))
    assert type(ours) is type(theirs)
    assert same(tensors(ours), tensors(theirs))
    assert set(tensors(ours)) > set(ours.state_dict())  # with buffers that the constructor computes
    for name in ("labels", "joint", "decoder", "encoder"):
        assert ours.cfg.get(name) == theirs.cfg.get(name)
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("path", [PARAKEET, CANARY, LANGUAGES, CTC], ids=lambda path: path.stem)
def test_a_cast_while_loading_is_a_cast_of_the_loaded_model(path):
    parts = ("encoder", "decoder", "joint", "transf_decoder", "log_softmax")
    ours, _ = restore(path, torch.device("cpu"), torch.bfloat16, parts)
    theirs, _ = restore(path, torch.device("cpu"))
    for part in parts:
        if isinstance(module := getattr(theirs, part, None), torch.nn.Module):
            module.to(torch.bfloat16)
    assert same(tensors(ours), tensors(theirs))
    assert ours.encoder.pos_enc.pe.dtype == torch.bfloat16
    assert ours.preprocessor.featurizer.fb.dtype == torch.float32


def test_a_parameter_with_two_names_remains_one():
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = restore(CANARY, torch.device("cpu"), dtype, ("transf_decoder", "log_softmax"))
        assert model.log_softmax.mlp.layer0.weight is model.transf_decoder.embedding.token_embedding.weight


def test_a_file_in_half_precision_gets_the_precision_of_the_model(tmp_path):
    def halve(state: dict[str, torch.Tensor]) -> None:
        state |= {name: value.half() if value.is_floating_point() else value for name, value in state.items()}

    model, _ = restore(with_weights(CTC, tmp_path / "half.nemo", halve), torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(
        model.encoder.pre_encode.out.weight, restore(CTC, "cpu")[0].encoder.pre_encode.out.weight.half().float()
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda state: state.pop("encoder.pre_encode.out.weight"),
            r"Missing key\(s\).*encoder\.pre_encode\.out\.weight",
        ),
        (lambda state: state.update(other=torch.zeros(1)), r"Unexpected key\(s\).*other"),
        (lambda state: state.update({"encoder.pre_encode.out.weight": torch.zeros(3)}), "size mismatch"),
    ],
)
def test_weights_that_do_not_fit_say_so_and_name_the_versions(tmp_path, change, reason):
    """Each tensor is filled, because the constructor's values were left out."""
    import nemo

    path = with_weights(CTC, tmp_path / "x.nemo", change)
    with pytest.raises(ModelUnavailable, match=reason) as caught:
        restore(path, torch.device("cpu"))
    assert f"{path} does not load in NeMo {nemo.__version__}; NeMo 3.0.0 saved it." in caught.value.message


def with_weights(source: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Write the archive with changed weights."""
    with tarfile.open(source) as archive, tarfile.open(path, "w") as made:
        for member in archive.getmembers():
            content = archive.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith("model_weights.ckpt"):
                state = torch.load(io.BytesIO(content))
                change(state)
                torch.save(state, saved := io.BytesIO())
                content = saved.getvalue()
                member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("version", ["2.3.0", "2.7.3rc1"])
def test_a_refused_file_names_its_version(tmp_path, version):
    def change(c: dict[str, Any]) -> None:
        c["nemo_version"], c["encoder"]["_target_"] = version, "someone.Encoder"

    path = with_config(PARAKEET, tmp_path / "x.nemo", change)
    with pytest.raises(ModelUnavailable, match=f"x.nemo, which NeMo {version} saved, names 'someone.Encoder'"):
        restore(path, torch.device("cpu"))


@pytest.mark.parametrize(("version", "says"), [("2.4.1", "NeMo 2.4.1 saved it"), (None, "does not say which version")])
def test_what_nemo_cannot_build_names_both_versions(tmp_path, version, says):
    import nemo

    def change(c: dict[str, Any]) -> None:
        c["nemo_version"], c["encoder"]["of_a_later_nemo"] = version, True

    path = with_config(PARAKEET, tmp_path / "x.nemo", change)
    with pytest.raises(ModelUnavailable, match=rf"does not load in NeMo {nemo.__version__}; .*{says}.*of_a_later_nemo"):
        restore(path, torch.device("cpu"))


def test_a_full_disk_names_the_folder_and_what_is_needed(tmp_path, monkeypatch):
    def copy(self: Any, member: Any, file: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Archive, "copy", copy)
    needs = rf"cannot be written to {tmp_path}: it needs 0\.0 GiB, and [\d.]+ GiB are free\..* set TMPDIR to"
    with pytest.raises(ModelUnavailable, match=needs):
        restore(PARAKEET, torch.device("cpu"))


def test_random_values_are_left_out_on_this_thread_only():
    def fill() -> torch.Tensor:
        return torch.nn.init.kaiming_uniform_(torch.zeros(4, 4))

    with without_random_values(), ThreadPoolExecutor(1) as other:
        assert not fill().any()
        assert not torch.nn.init.trunc_normal_(torch.zeros(4)).any()
        assert torch.equal(torch.nn.init.ones_(torch.zeros(4)), torch.ones(4))
        assert other.submit(fill).result().all()
    assert fill().all()


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


@pytest.mark.parametrize("path", [PARAKEET, CANARY, CTC], ids=lambda path: path.stem)
def test_a_model_that_is_unloaded_is_freed(path):
    backends = []

    def make(row: Model) -> Backend:
        backends.append(create(row, Settings(device="cpu")))
        return backends[-1]

    manager = ModelManager(make, idle_sec=0.01)
    loaded = manager.load(str(path))
    while not loaded.done():
        manager.warm()
        time.sleep(0.01)
    model = weakref.ref(backends[0]._nemo.model)
    gc.freeze()  # as the HTTP server does once its models are loaded
    time.sleep(0.02)
    manager.evict_idle()
    assert manager.states() == {}
    assert model() is None


@pytest.mark.parametrize("path", [PARAKEET, CTC, CANARY], ids=lambda path: path.stem)
def test_bfloat16_transcribes_as_float32_does(path):
    pieces = tuple(
        Piece(Clip(soundfile.read(DIGITS / name, dtype="float32")[0]), Options(str(path), language="en"))
        for name in sorted(LABELS)
    )
    texts = []
    for dtype in ("float32", "bfloat16"):
        backend = create(find(str(path)), Settings(device="cpu", dtype=dtype))
        backend.load()
        texts.append([output.text for output in backend.infer(Batch(pieces)) if isinstance(output, Transcript)])
    assert texts[0] == texts[1]
    assert all(texts[0])
