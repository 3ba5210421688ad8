"""Loading a checkpoint runs nothing of its author's: hostile files are refused with the reason, honest ones load."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import stat
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DIGITS, FIXTURES, MODEL

from worker.backends.nemo import restore, vetting
from worker.catalog import find
from worker.catalog.model_config import MAX_LEVELS, ModelConfig
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import ModelUnavailable
from worker.protocol.request import parse

PARAKEET, CANARY, CTC = (FIXTURES / f"{name}-digits.nemo" for name in ("parakeet", "canary", "ctc"))
WRITE = "nemo.collections.asr.parts.utils.diarization_utils.write_txt"  # NeMo 3.0.0's own list admits it
MODULES = "nemo.collections.asr.modules"
Change = Callable[[dict[str, Any]], Any]


def variant(source: Path, target: Path, change: Change | None = None, **files: bytes) -> Path:
    """A copy of a .nemo file with another configuration, and other or further files: `model_weights=…`."""
    files = {name.replace("__", "."): content for name, content in files.items()}
    with tarfile.open(source) as archive, tarfile.open(target, "w") as made:
        contents = {
            member.name.removeprefix("./"): archive.extractfile(member).read() for member in archive.getmembers()[1:]
        }
        if change is not None:
            config = yaml.safe_load(contents["model_config.yaml"])
            change(config)
            contents["model_config.yaml"] = yaml.safe_dump(config, sort_keys=False).encode()
        for name, content in (contents | files).items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return target


def config(text: str) -> ModelConfig:
    return ModelConfig(text.encode(), "model_config.yaml")


def vetted(**sections: Any) -> dict[str, Any]:
    tree = {"target": "nemo.collections.asr.models.EncDecRNNTBPEModel", **sections}
    return vetting.vet(config(yaml.safe_dump(tree)), {"abc_tokenizer.model", "vocab.txt"})


# ---- the attack


def call(path: Path, key: str = "_target_") -> dict[str, str]:
    """A section that writes a file when NeMo instantiates it."""
    return {key: WRITE, "w_path": str(path), "val": "import os"}


PLACES: dict[str, tuple[Path, Callable[[dict[str, Any], dict[str, Any]], Any]]] = {
    "preprocessor": (PARAKEET, lambda c, evil: c.update(preprocessor=evil)),
    "encoder": (PARAKEET, lambda c, evil: c.update(encoder=evil)),
    "spec_augment": (PARAKEET, lambda c, evil: c.update(spec_augment=evil)),
    "decoder": (PARAKEET, lambda c, evil: c.update(decoder=evil)),
    "joint": (PARAKEET, lambda c, evil: c["joint"].update(jointnet=evil)),
    "argument": (PARAKEET, lambda c, evil: c["encoder"].update(d_model=evil)),
    "list": (PARAKEET, lambda c, evil: c["encoder"].update(att_context_size=[[evil]])),
    "tokenizer": (PARAKEET, lambda c, evil: c["tokenizer"].update(custom_tokenizer=evil)),
    "adapters": (PARAKEET, lambda c, evil: c.update(adapters={"a": evil})),
    "model": (PARAKEET, lambda c, evil: c.update(model=dict(c, preprocessor=evil))),
    "head": (CANARY, lambda c, evil: c.update(head=evil)),
    "loss": (CANARY, lambda c, evil: c.update(loss=evil)),
    "transf_decoder": (CANARY, lambda c, evil: c.update(transf_decoder=evil)),
    "ctc decoder": (CTC, lambda c, evil: c.update(decoder=evil)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["_target_", "target", "cls"])
def test_a_class_that_is_not_on_the_list_is_refused_wherever_it_stands(tmp_path, place, key):
    source, put = PLACES[place]
    path = variant(source, tmp_path / "evil.nemo", lambda c: put(c, call(tmp_path / "pwned", key)))
    with pytest.raises(ModelUnavailable, match=rf"{WRITE}' at .*not one of the classes") as caught:
        restore.restore(path, "cpu")
    assert str(path) in caught.value.message
    assert "save_to()" in caught.value.message
    assert not (tmp_path / "pwned").exists()


def test_the_backend_refuses_it(tmp_path):
    from worker.backends import create

    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    path = variant(PARAKEET, tmp_path / "x.nemo", lambda c: c.update(preprocessor=call(tmp_path / "pwned")))
    with pytest.raises(ModelUnavailable, match=f"{WRITE}' at preprocessor._target_"):
        create(find(str(path)), Settings(device="cpu")).load()
    assert not (tmp_path / "pwned").exists()


def test_a_request_that_names_it_is_answered_with_the_reason(tmp_path):
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    path = variant(PARAKEET, tmp_path / "x.nemo", lambda c: c.update(preprocessor=call(tmp_path / "pwned")))
    settings = Settings(
        model=str(MODEL),
        allowed_models=(str(path),),
        device="cpu",
        allowed_paths=(DIGITS,),
        data_dir=tmp_path / "data",
    )
    with Engine(settings) as engine:
        request = parse({"model": str(path), "inputs": [str(DIGITS / "00.flac")]}, settings)
        (result,) = engine.submit(request).result(120).results
    assert result.error.code == "model_unavailable"
    assert f"names '{WRITE}' at preprocessor._target_" in result.error.message
    assert not (tmp_path / "pwned").exists()


def test_the_aligner_that_an_archive_carries_is_vetted_too(tmp_path):
    evil = yaml.safe_dump(
        {"target": "nemo.collections.asr.models.EncDecCTCModelBPE", "decoder": call(tmp_path / "pwned")}
    )
    path = variant(CANARY, tmp_path / "x.nemo", timestamps_asr_model_config__yaml=evil.encode())
    with pytest.raises(ModelUnavailable, match=r"timestamps_asr_model_config\.yaml in .*write_txt"):
        restore.restore(path, "cpu")


@pytest.mark.parametrize("target", ["os.system", WRITE, f"{MODULES}.ConformerEncoder", ["a"], None])
def test_the_model_itself_is_one_of_ours(target):
    with pytest.raises(ModelUnavailable, match="not one of Aviary's model classes"):
        vetted(target=target)


@pytest.mark.parametrize("value", [["os.system"], {"a": 1}, 5, None, "", f"{MODULES}.ConformerEncoder "])
def test_a_class_is_text_that_is_on_the_list(value):
    with pytest.raises(ModelUnavailable, match=r"at encoder\.x\.0\._target_"):
        vetted(encoder={"x": [{"_target_": value}]})


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_", "_convert_"])
def test_the_other_keys_of_hydra_are_refused(key):
    with pytest.raises(ModelUnavailable, match=rf"has the key encoder\.{key}"):
        vetted(encoder={"_target_": f"{MODULES}.ConformerEncoder", key: True})


def test_a_long_name_does_not_fill_the_message():
    with pytest.raises(ModelUnavailable) as caught:
        vetted(encoder={"_target_": "x" * 100_000, "y" * 100_000: {"cls": "x"}})
    assert len(caught.value.message) < 1000


def test_sections_of_the_training_are_left_out():
    """No class in them is made when a model is restored; a configuration that names some still loads."""
    evil = {"_target_": "os.system", "command": "${oc.env:HOME}"}
    sections = vetted(train_ds=evil, validation_ds=[evil], test_ds=evil, optim=evil, sample_rate=16000)
    assert sections == {
        "target": "nemo.collections.asr.models.EncDecRNNTBPEModel",
        "sample_rate": 16000,
        "restore_timestamps_model": False,
    }


# ---- references


def test_references_within_the_file_are_followed():
    made = config(
        "encoder: {d_model: 96, sizes: [1, 2], far: '${joint.same}'}\n"
        "joint: {same: '${encoder.d_model}', all: '${encoder.sizes}', one: '${encoder.sizes.1}',"
        " two: '${encoder.sizes[0]}', near: '${.same}', up: '${..encoder.d_model}'}\n"
    )
    assert made["encoder"] == {"d_model": 96, "sizes": [1, 2], "far": 96}
    assert made["joint"] == {"same": 96, "all": [1, 2], "one": 2, "two": 1, "near": 96, "up": 96}


def test_references_of_a_whole_training_configuration_count_from_its_root():
    made = config("name: x\nmodel: {a: 5, b: '${model.a}', c: '${name}'}\n")
    assert {name: made[name] for name in made} == {"a": 5, "b": 5, "c": "x"}


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "${oc.decode:'1'}",
        "${multiply:2,3}",
        "${env:HOME}",
        "${oc.env:HOME,x}",
        "x ${b}",
        "${b}${b}",  # composes a resolver when NeMo resolves what it resolved
        "${${b}:HOME}",
        "${b${b}}",
        "\\${oc.env:HOME}",
        "\\\\${b}",
        "${b",
        "${ b }",
        "${}",
        "${....b}",
        "${b}\n",
    ],
)
def test_everything_else_that_looks_like_a_reference_is_refused(text):
    made = config(yaml.safe_dump({"a": {"x": text}, "b": "$"}))
    with pytest.raises(ModelUnavailable, match=r"at a\.x, which is not a reference"):
        made["a"]


@pytest.mark.parametrize("text", ["${c}", "${b.c}", "${d.2}", "${d.x}", "${d.-1}", "${.c}", f"${{d.{'9' * 5000}}}"])
def test_a_reference_to_nothing_is_refused(text):
    made = config(yaml.safe_dump({"a": {"x": text}, "b": 1, "d": [1, 2]}))
    with pytest.raises(ModelUnavailable, match=r"refers at a\.x to .*, which does not exist"):
        made["a"]


@pytest.mark.parametrize(
    "text", ["a: '${a}'", "a: {b: '${a}'}", "a: '${b}'\nb: '${c}'\nc: '${a}'", "a: ['${a}', '${a}']"]
)
def test_a_circle_of_references_is_refused(text):
    with pytest.raises(ModelUnavailable, match=r"circle of references|more than 200000 values or 32 levels"):
        config(text)["a"]


def test_references_that_expand_to_billions_are_refused_at_once():
    lines = ["a0: [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: [{', '.join([f'${{a{i - 1}}}'] * 10)}]" for i in range(1, 12)]
    started = time.process_time()
    with pytest.raises(ModelUnavailable, match="more than 200000 values"):
        config("\n".join(lines).replace("${", "'${").replace("}", "}'"))["a11"]
    assert time.process_time() - started < 5


# ---- YAML


def test_values_are_read_as_nemo_reads_them():
    text = (
        "a: 1e-5\nb: 1.0e-05\nc: .5\nd: -2\ne: .inf\nf: '1e-5'\ng: 2026-01-01\nh: null\ni: [true, off]\nj: '???'\n"
        "k: !!python/object/apply:pathlib.PosixPath [/, data, x.json]\n5: x\nl: 1_000.5\nm: v1.2\nn: 0x10\n"
    )
    made = config(text)
    tree = {name: made[name] for name in made}
    assert tree == {
        "a": 1e-5,
        "b": 1e-5,
        "c": 0.5,
        "d": -2,
        "e": float("inf"),
        "f": "1e-5",
        "g": "2026-01-01",
        "h": None,
        "i": [True, False],
        "j": "???",
        "k": "//data/x.json",
        5: "x",
        "l": 1000.5,
        "m": "v1.2",
        "n": 16,
    }
    omegaconf = pytest.importorskip("omegaconf")
    theirs = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.load(io.StringIO(text.replace("k: !!", "# "))))
    assert {key: value for key, value in tree.items() if key != "k"} == theirs


def aliases(levels: int, each: int = 10) -> str:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * each)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (aliases(12), "more than 200000 values or 32 levels"),
        (aliases(40, 1), "more than 200000 values or 32 levels"),
        ("a: [" + "x," * 250_000 + "]", "more than 200000 values or 32 levels"),
        ("a: " + "[" * (MAX_LEVELS + 1) + "]" * (MAX_LEVELS + 1), "more than 200000 values or 32 levels"),
        ("a: " + "[" * 1_000_000, "is not valid YAML|more than 200000 values or 32 levels"),
        ("- " * 100_000 + "x", "more than 200000 values or 32 levels"),
        ("a: &a [*a]", "alias inside or before its anchor 'a'"),
        ("a: &a {b: *a}", "alias inside or before its anchor"),
        ("a: &a x\nb: &a [*a]", "alias inside or before its anchor"),
        ("a: *b", "alias inside or before its anchor"),
        ("a: !!python/object/apply:os.system [id]", "is not valid YAML"),
        ("a: !!python/name:os.system", "is not valid YAML"),
        ("!!python/object/new:type {}", "is not valid YAML"),
        ("a: !!binary aGk=", "value of the type bytes"),
        ("a: !!set {x}", "value of the type set"),
        ("a: !!timestamp 2026-01-01", "value of the type date"),
        ("? [a, b]\n: x", "is not valid YAML"),
        ("null: x", "key of the type NoneType"),
        ("a: " + "1:" * 100_000 + "1", "a number is too long"),
        ("a: !!int " + "1:" * 100_000 + "1", "a number is too long"),
        ("a: " + "9" * 5000, "a number is too long"),
        ("a: !!int x", "is not valid YAML"),
        ("a: [", "is not valid YAML"),
        ("a: x\n---\nb: y", "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
        ("[a]", "is not a mapping"),
        ("", "is not a mapping"),
    ],
    ids=range(27),
)
def test_yaml_beyond_the_bounds_is_refused_at_once(text, reason):
    started = time.process_time()
    with pytest.raises(ModelUnavailable, match=reason):
        config(text)
    assert time.process_time() - started < 5


def test_the_bounds_hold_without_libyaml(monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert config("a: 1e-5\nb: &b [x]\nc: *b\n")["a"] == 1e-5
    for text in (aliases(12), "a: " + "[" * 10_000, "a: &a [*a]", "a: " + "1:" * 10_000 + "1", "a: !!python/name:x.y"):
        with pytest.raises(ModelUnavailable):
            config(text)


# ---- files and calls that need no class


def test_the_tokenizer_reads_files_of_the_archive_alone():
    sections = vetted(
        tokenizer={
            "type": "bpe",
            "dir": "/etc",
            "model_path": "nemo:../../abc_tokenizer.model",
            "vocab_path": "/etc/passwd",
            "hf_kwargs": {"pretrained_model_name": "evil/remote", "trust_remote_code": True, "pad_token": "<pad>"},
            "extra": "/etc/shadow",
        }
    )
    assert sections["tokenizer"] == {
        "type": "bpe",
        "dir": None,
        "model_path": "nemo:abc_tokenizer.model",
        "vocab_path": None,
        "spe_tokenizer_vocab": None,
        "hf_kwargs": {"pad_token": "<pad>"},
    }
    several = vetted(tokenizer={"type": "agg", "langs": {"en": {"type": "bpe", "vocab_path": "/x/vocab.txt"}}})
    assert several["tokenizer"]["langs"]["en"]["vocab_path"] == "nemo:vocab.txt"


BPE = "nemo.collections.common.tokenizers.canary_tokenizer.CanaryBPETokenizer"


@pytest.mark.parametrize("section", ["preprocessor", "encoder", "custom_tokenizer"])
def test_a_tokenizer_elsewhere_would_open_a_file_outside_the_archive(tmp_path, section):
    fifo = tmp_path / "outside"
    os.mkfifo(fifo)  # opening it would never end
    path = variant(
        PARAKEET, tmp_path / "x.nemo", lambda c: c.update({section: {"_target_": BPE, "model_path": str(fifo)}})
    )
    with pytest.raises(ModelUnavailable, match=f"{BPE}' at {section}._target_"):
        restore.restore(path, "cpu")


def test_a_tokenizer_of_its_own_class_gets_files_of_the_archive_alone():
    sections = vetted(tokenizer={"type": "bpe", "custom_tokenizer": {"_target_": BPE, "model_path": "/etc/passwd"}})
    assert sections["tokenizer"]["custom_tokenizer"] == {"_target_": BPE}


@pytest.mark.parametrize("kind", ["wpe", "hf", None, 5])
def test_a_tokenizer_whose_vocabulary_is_not_in_the_archive_is_refused(kind):
    with pytest.raises(ModelUnavailable, match="has a tokenizer of type"):
        vetted(tokenizer={"type": kind})


def test_decoding_names_no_language_model():
    """NeMo would restore a model from such a path, with all that its configuration names."""
    decoding = {
        "strategy": "malsd_batch",
        "durations": [0, 1, 2],
        "preserve_alignments": None,
        "beam": {"ngram_lm_model": "/tmp/evil.nemo"},
        "greedy": {
            "max_symbols": 7,
            "ngram_lm_model": "/tmp/evil.nemo",
            "boosting_tree": {"model_path": "/tmp/evil.nemo"},
            "loop_labels": True,
        },
    }
    sections = vetted(joint={}, decoding=decoding, aux_ctc={"decoding": decoding, "decoder": {}})
    assert sections["decoding"] == {
        "strategy": "greedy_batch",
        "durations": [0, 1, 2],
        "preserve_alignments": None,
        "greedy": {"max_symbols": 7, "loop_labels": True},
    }
    assert sections["aux_ctc"] == {"decoder": {}}
    assert "decoding" not in vetted(decoding=decoding)


def test_every_name_on_the_list_is_a_class_of_nemo_but_one():
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    import torch
    from nemo.collections.common.tokenizers.tokenizer_spec import TokenizerSpec
    from nemo.utils.model_utils import import_class_by_path

    functions = set()
    for name in vetting.CLASSES | vetting.MODELS:
        named = import_class_by_path(name)
        while hasattr(named, "__wrapped__"):
            named = named.__wrapped__
        if not isinstance(named, type):
            functions.add(named.__name__)
        else:
            assert issubclass(named, (torch.nn.Module, TokenizerSpec)), name
    assert functions == {"get_nemo_transformer"}


def test_nothing_restores_a_model_without_vetting():
    calls = [
        path.name for path in (FIXTURES.parent.parent / "worker").rglob("*.py") if "restore_from(" in path.read_text()
    ]
    assert not calls


# ---- weights and folders


def test_a_pinned_hash_is_checked_before_the_file_is_used(tmp_path, monkeypatch):
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    from worker import catalog
    from worker.backends import create
    from worker.entrypoints.cli.doctor import weights

    path = tmp_path / "parakeet-tdt-0.6b-v2" / "x.nemo"
    path.parent.mkdir()
    path.write_bytes(PARAKEET.read_bytes())
    settings = Settings(device="cpu", model_dir=tmp_path)
    row = replace(find("parakeet-v2"), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert [found.state for found in weights.hashes(settings)] == ["SHA-256 pinned for no model of the catalog"]
    monkeypatch.setattr(catalog, "find", lambda *_: row)
    monkeypatch.setattr(catalog, "MODELS", (row,))
    create(row, settings).load()
    assert [found.state for found in weights.hashes(settings)] == ["SHA-256 pinned for parakeet-v2"]
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(restore, "_contents", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ModelUnavailable, match=f"and the catalog pins {row.sha256}. Download the file again"):
        create(row, settings).load()


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["VETTING_TEST"],)


def test_weights_that_are_more_than_tensors_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    import torch

    monkeypatch.setenv("VETTING_TEST", str(tmp_path / "pwned"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    saved = io.BytesIO()
    torch.save({"encoder": Evil()}, saved)
    for content in (saved.getvalue(), pickle.dumps({"encoder": Evil()}, protocol=2)):
        path = variant(PARAKEET, tmp_path / "x.nemo", model_weights__ckpt=content)
        with pytest.raises(ModelUnavailable, match="holds more than tensors"):
            restore.restore(path, "cpu")
        assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_unpacked_into_a_private_folder_that_is_removed(tmp_path, monkeypatch, fails):
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    import torch

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen, here = [], os.getcwd()

    def build(sections, weights, dtype, parts):
        (folder,) = tmp_path.iterdir()
        seen.append((stat.S_IMODE(folder.stat().st_mode), {path.suffix for path in folder.iterdir()}, os.getcwd()))
        if fails:
            raise RuntimeError("out of luck")
        return torch.nn.Module()

    monkeypatch.setattr(restore, "_build", build)
    if fails:
        with pytest.raises(ModelUnavailable, match="RuntimeError: out of luck"):
            restore.restore(PARAKEET, "cpu")
    else:
        restore.restore(PARAKEET, "cpu")
    assert seen == [(0o700, {".model", ".vocab", ".txt", ".yaml"}, here)]  # the weights are read in place
    assert not list(tmp_path.iterdir())


def test_what_is_refused_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "_unpack", lambda *_: pytest.fail("it was unpacked"))
    path = variant(PARAKEET, tmp_path / "x.nemo", lambda c: c.update(encoder={"_target_": "os.system"}))
    with pytest.raises(ModelUnavailable, match=r"os\.system"):
        restore.restore(path, "cpu")


def test_vetting_does_not_read_the_weights(tmp_path):
    path, size = tmp_path / "big.nemo", 3 << 30
    weights = tarfile.TarInfo("./model_weights.ckpt")
    weights.size = size
    with path.open("wb") as file:
        file.write(weights.tobuf())
        file.truncate(size + 512)  # a hole: it takes no room on the disk
        file.seek(0, os.SEEK_END)
        with tarfile.open(PARAKEET) as archive, tarfile.open(fileobj=file, mode="w") as made:
            member = archive.getmember("./model_config.yaml")
            made.addfile(member, archive.extractfile(member))
    started = time.process_time()
    configs, members = restore._contents(path)
    assert set(members) == {"model_weights.ckpt", "model_config.yaml"}
    assert vetting.vet(configs["model_config.yaml"], members)["encoder"]["d_model"] == 96
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("lacks", ["model_config.yaml", "model_weights.ckpt"])
def test_an_archive_that_lacks_a_file_says_so(tmp_path, lacks):
    with tarfile.open(PARAKEET) as archive, tarfile.open(tmp_path / "x.nemo", "w") as made:
        for member in archive.getmembers():
            if not member.name.endswith(lacks):
                made.addfile(member, archive.extractfile(member))
    with pytest.raises(ModelUnavailable, match="it requires a"):
        restore.restore(tmp_path / "x.nemo", "cpu")
