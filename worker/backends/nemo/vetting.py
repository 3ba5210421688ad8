"""The configuration that NeMo builds a model from, vetted: no class, file or call of the checkpoint author's choice.

    ModelConfig ── vet ──▶ DictConfig's content: the sections that inference needs

NeMo instantiates each class that a configuration names, with arguments from the configuration. Its own list admits
every function of some packages, among them one that writes a file. Here only the classes in CLASSES and MODELS are
admitted: the constructors of these were read for NeMo 3.0.0, and open no file, import no module and send no request.

    train_ds, validation_ds, test_ds, optim, …   removed: inference does not use them
    decoding                                     reduced to numbers: strings name language models and phrase lists
    tokenizer                                    reduced to files of the archive and to TOKENIZERS
    labels, joint.vocabulary                     removed if NeMo sets them from the tokenizer, because OmegaConf takes
                                                 seconds to copy the 8,192 tokens of each again and again
    Hydra's keys (_partial_, _args_, …)          refused
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from worker.catalog.model_config import ModelConfig

_ASR = "nemo.collections.asr"
_COMMON = "nemo.collections.common"

MODELS = frozenset(
    f"{_ASR}.models.{name}"
    for module, model in (
        ("rnnt_models", "EncDecRNNTModel"),
        ("rnnt_bpe_models", "EncDecRNNTBPEModel"),
        ("ctc_models", "EncDecCTCModel"),
        ("ctc_bpe_models", "EncDecCTCModelBPE"),
        ("hybrid_rnnt_ctc_models", "EncDecHybridRNNTCTCModel"),
        ("hybrid_rnnt_ctc_bpe_models", "EncDecHybridRNNTCTCBPEModel"),
        ("aed_multitask_models", "EncDecMultiTaskModel"),
        ("sortformer_diar_models", "SortformerEncLabelModel"),
    )
    for name in (model, f"{module}.{model}")
)
"""The classes that `target` may name, each by its module and by the package."""

CLASSES = frozenset(
    {
        f"{_ASR}.modules.AudioToMelSpectrogramPreprocessor",
        f"{_ASR}.modules.SpectrogramAugmentation",
        f"{_ASR}.modules.ConformerEncoder",
        f"{_ASR}.modules.RNNTDecoder",
        f"{_ASR}.modules.StatelessTransducerDecoder",
        f"{_ASR}.modules.RNNTJoint",
        f"{_ASR}.modules.SampledRNNTJoint",
        f"{_ASR}.modules.ConvASRDecoder",
        f"{_ASR}.modules.audio_preprocessing.AudioToMelSpectrogramPreprocessor",
        f"{_ASR}.modules.audio_preprocessing.SpectrogramAugmentation",
        f"{_ASR}.modules.conformer_encoder.ConformerEncoder",
        f"{_ASR}.modules.rnnt.RNNTDecoder",
        f"{_ASR}.modules.rnnt.StatelessTransducerDecoder",
        f"{_ASR}.modules.rnnt.RNNTJoint",
        f"{_ASR}.modules.rnnt.SampledRNNTJoint",
        f"{_ASR}.modules.conv_asr.ConvASRDecoder",
        f"{_ASR}.modules.sortformer_modules.SortformerModules",
        f"{_ASR}.modules.transformer.TransformerEncoder",
        f"{_ASR}.modules.transformer.transformer_encoders.TransformerEncoder",
        f"{_ASR}.modules.transformer.get_nemo_transformer",
        f"{_ASR}.modules.transformer.transformer_utils.get_nemo_transformer",
        f"{_ASR}.parts.submodules.token_classifier.TokenClassifier",
        f"{_ASR}.losses.bce_loss.BCELoss",
        f"{_COMMON}.losses.SmoothedCrossEntropyLoss",
        f"{_COMMON}.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
    }
)
"""The classes, and the one function, that a section may name."""

TOKENIZERS = frozenset(
    f"{_COMMON}.tokenizers.canary_tokenizer.{name}" for name in ("CanaryTokenizer", "CanaryBPETokenizer")
)
"""The classes that `_TOKENIZER_CLASS` alone may name. They open the file that an argument names, and NeMo takes the
argument from the archive only there."""

_CLASS_KEYS = ("_target_", "target", "cls")  # Hydra's key, and those of NeMo before it used Hydra
_HYDRA_KEYS = ("_args_", "_partial_", "_recursive_", "_convert_")
_UNUSED = frozenset(
    {
        *("train_ds", "validation_ds", "test_ds", "optim", "multitask_metrics_cfg"),
        *("nsys_profile", "memory_profile", "chakra_profile", "params"),
    }
)
_TOKENIZER_CLASS = "tokenizer.custom_tokenizer._target_"
_TOKENIZER_TYPES = ("bpe", "agg")  # NeMo asks the hub for the vocabulary of another type
_TOKENIZER_FILES = {
    "model_path": "tokenizer.model",
    "vocab_path": "vocab.txt",
    "spe_tokenizer_vocab": "tokenizer.vocab",
}
_TOKENIZER_OPTIONS = frozenset(
    {"mask_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "unk_token", "use_fast"}
)
_ALIGNER = "restore_timestamps_model"
_SPEAKERS = "max_num_of_spks"
_MAX_SPEAKERS = 8  # NeMo lists every order of the speakers, and 8 have 40,320


def vet(config: ModelConfig, files: Collection[str]) -> dict[str, Any]:
    """Return the sections that NeMo may build a model from. `files` are the names of the archive's members.

    Raises ModelUnavailable, which names the class or the value, if the configuration holds anything else.
    """
    sections = {name: config[name] for name in config if name not in _UNUSED}
    model = sections.pop("target", None)
    if not isinstance(model, str) or model not in MODELS:
        raise config.refusal(f"names {_shown(model)} as its model, which is not one of Aviary's model classes")
    _check_classes(config, sections)
    speakers = sections.get(_SPEAKERS, 0)
    if not isinstance(speakers, int) or speakers > _MAX_SPEAKERS:
        raise config.refusal(f"has {_shown(speakers)} at {_SPEAKERS}, and at most {_MAX_SPEAKERS} load")
    for section in (sections, sections.get("aux_ctc")):
        if isinstance(section, dict):
            _reduce_decoding(section)
    if model.endswith("BPEModel"):
        sections.pop("labels", None)
        if isinstance(joint := sections.get("joint"), dict):
            joint.pop("vocabulary", None)
    if "tokenizer" in sections:
        sections["tokenizer"] = _tokenizer(config, sections["tokenizer"], files)
    # NeMo would restore the aligner in the archive without vetting its configuration.
    return sections | {"target": model, _ALIGNER: False}


def vet_modules(config: ModelConfig, section: str, modules: Collection[str]) -> dict[str, Any]:
    """Return the settings of some modules in a section, for NeMo to build each from. The rest of it is left out.

    Raises ModelUnavailable if a module is missing, or names anything that `vet` refuses.
    """
    settings = dict.fromkeys(modules) if section not in config else config[section]
    kept = {name: settings.get(name) for name in modules} if isinstance(settings, dict) else {}
    for name in modules:
        if not isinstance(module := kept.get(name), dict) or "_target_" not in module:
            raise config.refusal(f"has no class at {section}.{name}")
    _check_classes(config, kept)
    return kept


def has_aligner(config: ModelConfig) -> bool:
    """Return whether NeMo restores a second model for word times from the archive, if there is one."""
    return _ALIGNER not in config or bool(config[_ALIGNER])


def _check_classes(config: ModelConfig, sections: dict[str, Any]) -> None:
    """Raise ModelUnavailable if the sections name another class than those of the models, or a key of Hydra's."""
    for place, key, value in _settings(sections, ""):
        classes = TOKENIZERS if place == _TOKENIZER_CLASS else CLASSES
        if key in _CLASS_KEYS and (not isinstance(value, str) or value not in classes):
            raise config.refusal(f"names {_shown(value)} at {place}, which is not one of the classes of these models")
        if key in _HYDRA_KEYS:
            raise config.refusal(f"has the key {place}, which changes how classes are called")


def _settings(value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Yield each key of each mapping in a tree: its dotted place, the key and the value."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _settings(item, f"{place}.{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            below = f"{place}.{key}" if place else str(key)
            yield below[:200], key, item
            yield from _settings(item, below)


def _reduce_decoding(section: dict[str, Any]) -> None:
    """Keep the numbers of a transducer's `decoding`, such as the symbols in a frame; the backends set the strategy.

    Other models get NeMo's defaults.
    """
    decoding = section.pop("decoding", None)
    if "joint" in section:
        settings = decoding if isinstance(decoding, dict) else {}
        greedy = settings.get("greedy")
        section["decoding"] = {
            **_numbers(settings),
            "strategy": "greedy_batch",
            "greedy": _numbers(greedy if isinstance(greedy, dict) else {}),
        }


def _numbers(section: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are a number, a flag, None or a list of these."""
    return {
        key: value
        for key, value in section.items()
        if all(
            item is None or isinstance(item, bool | int | float)
            for item in (value if isinstance(value, list) else [value])
        )
    }


def _tokenizer(config: ModelConfig, section: Any, files: Collection[str]) -> dict[str, Any]:
    """Return the section `tokenizer` of one tokenizer, or of one for each language in `langs`."""
    if not isinstance(section, dict):
        raise config.refusal(f"has {_shown(section)} as its tokenizer")
    kept: dict[str, Any] = {"type": _tokenizer_type(config, section)}
    if "special_tokens" in section:
        kept["special_tokens"] = section["special_tokens"]
    if isinstance(section.get("custom_tokenizer"), dict) and "_target_" in section["custom_tokenizer"]:
        kept["custom_tokenizer"] = {"_target_": section["custom_tokenizer"]["_target_"]}
    if isinstance(languages := section.get("langs"), dict):
        kept["langs"] = {code: _tokenizer(config, one, files) for code, one in languages.items()}
    else:
        for key, default in _TOKENIZER_FILES.items():
            name = PurePosixPath(str(section.get(key) or default).removeprefix("nemo:")).name
            kept[key] = f"nemo:{name}" if name in files else None
        if isinstance(options := section.get("hf_kwargs"), dict):
            kept["hf_kwargs"] = {key: value for key, value in options.items() if key in _TOKENIZER_OPTIONS}
    return {**kept, "dir": None}


def _tokenizer_type(config: ModelConfig, section: dict[str, Any]) -> str:
    kind = section.get("type")
    if not isinstance(kind, str) or kind.lower() not in _TOKENIZER_TYPES:
        raise config.refusal(f"has a tokenizer of type {_shown(kind)}, and only {' and '.join(_TOKENIZER_TYPES)} load")
    return kind


def _shown(value: Any) -> str:
    return repr(value[:120] if isinstance(value, str) else type(value).__name__)
