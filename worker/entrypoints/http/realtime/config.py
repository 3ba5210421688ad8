"""The configuration of a realtime transcription session, in OpenAI's words.

    config = initial(turn_detection=…)            what a session starts with
    config = updated(config, event["session"])    session.update: only the fields that the client sent change
    to_json(config, id)                           the session in session.created and session.updated

The flat fields of OpenAI's beta (`input_audio_format`, …) are accepted too. Noise reduction is accepted and has no
effect: `to_json` shows null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from worker.audio.live import Encoding
from worker.errors import RequestError, Unsupported, excerpt
from worker.protocol.strict import Strict

Json = dict[str, Any]

LOGPROBS = "item.input_audio_transcription.logprobs"
_ENCODINGS: dict[str, Encoding] = {"audio/pcm": "pcm16", "audio/pcmu": "pcmu", "audio/pcma": "pcma"}
_RATES = {"audio/pcm": (24_000, 16_000), "audio/pcmu": (8_000,), "audio/pcma": (8_000,)}  # the default first
_BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_BETA_FIELDS = {
    "input_audio_transcription": "transcription",
    "turn_detection": "turn_detection",
    "input_audio_noise_reduction": "noise_reduction",
}


class AudioFormat(Strict):
    """The format of the audio that the client sends. `rate` is in Hz."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @model_validator(mode="after")
    def _known_rate(self) -> Self:
        if self.rate is not None and self.rate not in _RATES[self.type]:
            raise ValueError(f"the rate of {self.type} must be {' or '.join(map(str, _RATES[self.type]))}")
        return self

    @property
    def encoding(self) -> Encoding:
        """The encoding, as `LiveAudio` names it."""
        return _ENCODINGS[self.type]

    @property
    def sample_rate(self) -> int:
        """The sample rate in Hz."""
        return self.rate or _RATES[self.type][0]


class TurnDetection(Strict):
    """When the server ends a turn. `create_response` and `interrupt_response` concern other kinds of sessions."""

    type: Literal["server_vad"]
    threshold: float = Field(0.5, ge=0.05, le=1)
    prefix_padding_ms: int = Field(300, ge=0, le=5000)
    silence_duration_ms: int = Field(500, ge=100, le=10_000)
    create_response: bool | None = None
    interrupt_response: bool | None = None
    idle_timeout_ms: None = None


class Transcription(Strict):
    """How to transcribe. An empty text, and a list without texts, is the same as none.

    `languages` and `keywords` are checked as those of a payload.
    """

    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None

    @field_validator("languages", "keywords")
    @classmethod
    def _without_empty_texts(cls, texts: list[str] | None) -> list[str] | None:
        return [text for text in texts if text.strip()] if texts else None

    def to_json(self) -> Json:
        """Return the fields as OpenAI shows them: those of every session, and lists that are set."""
        always = ("model", "language", "prompt")
        return {name: value for name, value in self.model_dump().items() if value or name in always}


class NoiseReduction(Strict):
    """Noise reduction, which has no effect."""

    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class AudioInput(Strict):
    """The audio of the client."""

    format: AudioFormat = AudioFormat()
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = None


class _Audio(Strict):
    input: AudioInput = AudioInput()


class Config(Strict):
    """A session's configuration."""

    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = Field(None, max_length=8)

    @property
    def input(self) -> AudioInput:
        """The configuration of the client's audio."""
        return self.audio.input

    @property
    def fields(self) -> Json:
        """The fields of a payload that transcribes an utterance, without its audio."""
        wanted = self.input.transcription.model_dump() | {"include": "logprobs" if self.include else None}
        return {"task": "transcribe"} | {name: value for name, value in wanted.items() if value}


def initial(model: str | None, *, detects_turns: bool) -> Config:
    """Return the configuration that a session starts with. `detects_turns`: the server can detect speech."""
    turns = TurnDetection(type="server_vad") if detects_turns else None
    return Config(audio=_Audio(input=AudioInput(transcription=Transcription(model=model), turn_detection=turns)))


def updated(config: Config, change: Any) -> Config:
    """Return the configuration with the fields of a `session.update`. Raises RequestError that names a wrong field."""
    if not isinstance(change, Mapping):
        raise RequestError("session must be an object", param="session")
    if change.get("type", "transcription") != "transcription":
        raise RequestError(
            "this server has transcription sessions only: set session.type to transcription", param="session.type"
        )
    try:
        new = Config.model_validate(_merged(config.model_dump(), change))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = excerpt(".".join(map(str, ("session", *first["loc"]))))
        raise RequestError(f"{param}: {first['msg']}", param=param) from None
    if new.input.transcription.delay is not None:
        raise Unsupported(
            "no model of this version delays its text: a phrase is transcribed once it is spoken. Leave delay out.",
            param="session.audio.input.transcription.delay",
        )
    return new


def from_beta(session: Any) -> Any:
    """Return the session of the beta's `transcription_session.update` in the words of `session.update`."""
    if not isinstance(session, Mapping):
        return session
    change = {name: value for name, value in session.items() if name not in (*_BETA_FIELDS, "input_audio_format")}
    audio = {new: session[old] for old, new in _BETA_FIELDS.items() if old in session}
    if "input_audio_format" in session:
        name = session["input_audio_format"]
        audio["format"] = {"type": _BETA_FORMATS.get(name, name) if isinstance(name, str) else name}
    return change | ({"audio": {"input": audio}} if audio else {})


def to_json(config: Config, session_id: str) -> Json:
    """Return the session as OpenAI shows it, with what is in effect."""
    audio = config.input
    shape: Json = {"type": audio.format.type}
    if audio.format.type == "audio/pcm":
        shape["rate"] = audio.format.sample_rate
    turns = audio.turn_detection
    names = {"type", "threshold", "prefix_padding_ms", "silence_duration_ms"}
    return {
        "id": session_id,
        "object": "realtime.transcription_session",
        "type": "transcription",
        "audio": {
            "input": {
                "format": shape,
                "noise_reduction": None,
                "transcription": audio.transcription.to_json(),
                "turn_detection": turns.model_dump(include=names) if turns else None,
            }
        },
        "include": config.include,
    }


def _merged(old: Json, change: Mapping[str, Any]) -> Json:
    """Return the fields of `old`, replaced by those of the change. A format is replaced as a whole."""
    merged = dict(old)
    for name, value in change.items():
        both = isinstance(value, Mapping) and isinstance(old.get(name), dict) and name != "format"
        merged[name] = _merged(old[name], value) if both else value
    return merged
