"""worker/entrypoints/http/realtime: the state machine of a session, for any audio, split and order of outcomes."""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.backends.common.vad import FRAME
from worker.entrypoints.http.realtime import config as configs
from worker.entrypoints.http.realtime.session import PHRASE_SEC, Session, Utterance
from worker.entrypoints.http.realtime.turns import TurnDetector
from worker.errors import InputError, InternalError, ModelNotFound, ModelUnavailable
from worker.types import SAMPLE_RATE

LIMIT_SEC = 12.0
SCRIPT = "conversation.item.input_audio_transcription"


class Loud:
    """A detector for which everything that is not silent is speech."""

    def probabilities(self, samples: np.ndarray) -> list[float]:
        assert len(samples) % FRAME == 0
        return [float(np.abs(frame).max() > 0.01) for frame in samples.reshape(-1, FRAME)]


def check(fields) -> None:
    if fields.get("model") == "nobody":
        raise ModelNotFound("there is no model nobody", param="model")


def absent() -> Loud:
    raise ModelUnavailable("silero-vad is not installed")


def session(*, turns=True, rate=16_000, detector=Loud, limit_sec=LIMIT_SEC, chunk_sec=None) -> Session:
    begun = Session(
        "x",
        configs.initial(None, detects_turns=turns),
        check=check,
        detector=detector,
        limit_sec=limit_sec,
        chunk_sec=lambda fields: chunk_sec,
    )
    if rate != 24_000:
        update(begun, {"format": {"type": "audio/pcm", "rate": rate}})
    return begun


def update(begun: Session, audio) -> list:
    event = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": audio}}}
    return begun.receive(json.dumps(event))


def append(begun: Session, data: bytes) -> list:
    return begun.receive(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}))


def send(begun: Session, kind: str) -> list:
    return begun.receive(json.dumps({"type": f"input_audio_buffer.{kind}"}))


def spoken(*parts: float) -> bytes:
    """16 kHz PCM of seconds of speech (positive) and of silence (negative)."""
    noise = np.random.default_rng(3)
    pieces = [
        noise.integers(2000, 9000, round(part * SAMPLE_RATE)) if part > 0 else np.zeros(round(-part * SAMPLE_RATE))
        for part in parts
    ]
    return np.concatenate(pieces).astype("<i2").tobytes() if pieces else b""


def text_of(utterance: Utterance) -> dict:
    return {"text": f"said{len(utterance.samples)}"}


def finish(begun: Session, outputs: list) -> list:
    """The events of the outputs, and of the transcripts of its utterances."""
    events = []
    for output in outputs:
        events += begun.transcribed(output, text_of(output)) if isinstance(output, Utterance) else [output]
    return events


def kinds(events: list) -> list[str]:
    return [event["type"].rpartition(".")[2] for event in events if isinstance(event, dict)]


def of(events: list, kind: str) -> list[dict]:
    return [event for event in events if isinstance(event, dict) and event["type"].endswith(f".{kind}")]


# Turns


def test_a_turn_has_openai_s_events_in_openai_s_order():
    begun = session()
    events = begun.start() + finish(begun, append(begun, spoken(-1, 1, -1)))
    assert kinds(events) == [
        "created", "speech_started", "speech_stopped", "committed", "added", "done", "delta", "completed",
    ]  # fmt: skip
    started, stopped = of(events, "speech_started")[0], of(events, "speech_stopped")[0]
    assert started["audio_start_ms"] == pytest.approx(700, abs=35)  # with the padding
    assert stopped["audio_end_ms"] == pytest.approx(2500, abs=35)  # with the silence
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert len({event["event_id"] for event in events}) == len(events)
    completed = of(events, "completed")[0]
    assert completed["transcript"] == of(events, "delta")[0]["delta"] != ""
    assert completed["usage"] == {"type": "duration", "seconds": pytest.approx(1.8, abs=0.07)}


def test_two_turns_share_no_audio_and_name_their_predecessor():
    begun = session()
    outputs = append(begun, spoken(-0.5, 0.5, -0.6, 0.5, -1))
    first, second = [output for output in outputs if isinstance(output, Utterance)]
    events = finish(begun, outputs)
    assert [event["previous_item_id"] for event in of(events, "committed")] == [None, first.item]
    starts = [event["audio_start_ms"] for event in of(events, "speech_started")]
    ends = [event["audio_end_ms"] for event in of(events, "speech_stopped")]
    assert starts[1] >= ends[0]
    assert len(second.samples) / 16 == pytest.approx(ends[1] - starts[1], abs=1)


def test_a_click_is_no_turn():
    begun = session()
    assert append(begun, spoken(-1, 0.02, -1)) == []


def test_text_appears_at_a_pause_of_a_long_turn():
    begun = session()
    open_turn = append(begun, spoken(-0.5, PHRASE_SEC, -0.3))
    assert kinds(finish(begun, open_turn)) == ["speech_started", "delta"]
    rest = finish(begun, append(begun, spoken(2, -1)))
    (completed,) = of(rest, "completed")
    (delta,) = of(rest, "delta")
    assert delta["delta"].startswith(" said")
    assert completed["transcript"].endswith(delta["delta"])


def test_the_silence_after_the_last_phrase_is_not_transcribed():
    begun = session()
    outputs = append(begun, spoken(-0.5, PHRASE_SEC, -2))
    assert len([output for output in outputs if isinstance(output, Utterance)]) == 1
    assert kinds(finish(begun, outputs)).count("completed") == 1


def test_a_turn_that_never_ends_is_committed_at_the_limit_and_nothing_is_lost():
    begun = session()
    outputs = append(begun, spoken(2.5 * LIMIT_SEC))
    utterances = [output for output in outputs if isinstance(output, Utterance)]
    assert [len(one.samples) / SAMPLE_RATE for one in utterances] == pytest.approx([LIMIT_SEC] * 2, abs=0.1)
    outputs += send(begun, "commit")
    samples = np.concatenate([output.samples for output in outputs if isinstance(output, Utterance)])
    assert samples.tobytes() == spoken(2.5 * LIMIT_SEC)
    assert len(of(finish(begun, outputs), "completed")) == 3


@pytest.mark.parametrize("limit_sec", [10, 10.01])
def test_no_turn_is_longer_than_the_limit(limit_sec):
    """The limit may be MAX_AUDIO_SEC, beyond which audio is refused."""
    outputs = append(session(limit_sec=limit_sec), spoken(25))
    lengths = [len(output.samples) / SAMPLE_RATE for output in outputs if isinstance(output, Utterance)]
    assert len(lengths) == 2
    assert max(lengths) <= limit_sec


def test_the_client_s_commit_ends_an_open_turn_without_speech_stopped():
    begun = session()
    outputs = append(begun, spoken(-0.5, 1)) + send(begun, "commit")
    assert kinds(finish(begun, outputs)) == ["speech_started", "committed", "added", "done", "delta", "completed"]
    assert kinds(send(begun, "commit")) == ["error"]


def test_clear_drops_the_open_turn_and_its_late_text():
    begun = session()
    outputs = append(begun, spoken(-0.5, PHRASE_SEC, -0.3, 1))
    (phrase,) = [output for output in outputs if isinstance(output, Utterance)]
    assert kinds(send(begun, "clear")) == ["cleared"]
    assert begun.transcribed(phrase, {"text": "late"}) == []
    events = finish(begun, append(begun, spoken(-0.5, 1, -1)))
    assert len(of(events, "completed")) == 1
    assert of(events, "committed")[0]["previous_item_id"] is None


# Manual turns


def test_without_turn_detection_the_client_commits():
    begun = session(turns=False)
    assert append(begun, spoken(-1, 1, -1)) == []
    outputs = send(begun, "commit")
    assert kinds(finish(begun, outputs)) == ["committed", "added", "done", "delta", "completed"]
    (utterance,) = [output for output in outputs if isinstance(output, Utterance)]
    assert utterance.samples.tobytes() == spoken(-1, 1, -1)


@pytest.mark.parametrize("seconds", [0, 0.09])
def test_a_commit_of_next_to_nothing_is_openai_s_error(seconds):
    begun = session(turns=False)
    append(begun, spoken(seconds or -0.0))
    (error,) = send(begun, "commit")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    assert error["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_a_commit_that_is_refused_changes_nothing(rate):
    data = spoken(1)
    whole, interrupted = session(turns=False, rate=rate), session(turns=False, rate=rate)
    append(whole, data)
    append(interrupted, data[:101])  # ends within a sample
    assert kinds(send(interrupted, "commit")) == ["error"]
    append(interrupted, data[101:])
    assert signature(send(interrupted, "commit"))[-1] == signature(send(whole, "commit"))[-1]


def test_refused_commits_and_updates_take_no_memory():
    begun = session(turns=False)
    append(begun, spoken(0.05))
    for threshold in 20 * [0.5, 0.6]:
        assert kinds(send(begun, "commit")) == ["error"]
        assert kinds(update(begun, {"turn_detection": {"type": "server_vad", "threshold": threshold}})) == ["updated"]
        assert kinds(update(begun, {"turn_detection": None})) == ["updated"]
    assert len(begun._held) < 3


def test_manual_audio_is_committed_at_the_limit():
    begun = session(turns=False)
    outputs = append(begun, spoken(2.5 * LIMIT_SEC))
    utterances = [output for output in outputs if isinstance(output, Utterance)]
    assert [len(one.samples) / SAMPLE_RATE for one in utterances] == [LIMIT_SEC] * 2


# Streaming models


def test_a_streaming_model_gets_a_turn_in_chunks_while_the_speaker_talks():
    begun = session(chunk_sec=0.5)
    outputs = append(begun, spoken(-1, 1.9))
    chunks = [output for output in outputs if isinstance(output, Utterance)]
    assert [len(chunk.samples) for chunk in chunks] == [SAMPLE_RATE // 2] * 4  # with the padding before the speech
    assert all(chunk.is_live and not chunk.ends for chunk in chunks)
    outputs += append(begun, spoken(-1))
    chunks = [output for output in outputs if isinstance(output, Utterance)]
    assert [chunk.ends for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    events = [output for output in outputs if not isinstance(output, Utterance)]
    for text, chunk in zip(
        ("", "the", "the qui", "the quick fox", "the quick fox", "the quick fox."), chunks, strict=True
    ):
        events += begun.transcribed(chunk, {"text": text})
    assert [event["delta"] for event in of(events, "delta")] == ["the", " qui", "ck fox", "."]
    assert [event["transcript"] for event in of(events, "completed")] == ["the quick fox."]
    assert of(events, "completed")[0]["usage"]["seconds"] == pytest.approx(2.7, abs=0.1)


def test_a_streaming_model_gets_the_turns_of_a_client_whole():
    begun = session(turns=False, chunk_sec=0.5)
    assert append(begun, spoken(3)) == []
    *_, whole = send(begun, "commit")
    assert (whole.is_live, len(whole.samples)) == (False, 3 * SAMPLE_RATE)


def test_clear_ends_the_stream_of_the_open_turn():
    begun = session(chunk_sec=0.5)
    outputs = append(begun, spoken(-0.5, 2))
    *_, end, cleared = outputs + send(begun, "clear")
    assert (cleared["type"], end.ends, len(end.samples)) == ("input_audio_buffer.cleared", True, 0)
    assert begun.transcribed(end, {"text": "late"}) == []


def test_an_error_of_a_chunk_fails_the_turn_when_it_is_committed():
    begun = session(chunk_sec=0.5)
    outputs = append(begun, spoken(-0.5, 1, -1, 1, -1))
    events = [output for output in outputs if not isinstance(output, Utterance)]
    items = list(dict.fromkeys(output.item for output in outputs if isinstance(output, Utterance)))
    for output in outputs:
        if isinstance(output, Utterance):
            fails = output.item == items[0] and output.number > 0
            events += begun.transcribed(output, InputError("no") if fails else {"text": "one"})
    assert kinds(events)[-4:] == ["delta", "failed", "delta", "completed"]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([0.2, 1.0, 4.5, 14.0, -0.3, -0.8]), min_size=1, max_size=6),
    st.lists(st.integers(0, 2_000_000), max_size=20),
    st.sampled_from([0.08, 0.56]),
)
def test_any_split_gives_the_same_chunks_which_are_the_audio_of_the_turn(parts, cuts, chunk_sec):
    data = spoken(*parts)
    whole, pieces, phrases = session(chunk_sec=chunk_sec), session(chunk_sec=chunk_sec), session()
    expected = append(whole, data) + send(whole, "commit")
    outputs = [output for piece in split(data, cuts) for output in append(pieces, piece)] + send(pieces, "commit")
    assert signature(outputs) == signature(expected)
    ends = Counter(output.item for output in outputs if isinstance(output, Utterance) and output.ends)
    assert list(ends.values()) == [1] * len(of(outputs, "committed"))
    usual = append(phrases, data) + send(phrases, "commit")
    assert signature(of(outputs, "committed")) == signature(of(usual, "committed"))
    texts = [
        [event["usage"] for event in of(finish(begun, found), "completed")]
        for begun, found in ((pieces, outputs), (phrases, usual))
    ]
    assert texts[0] == texts[1]


# Properties

PARTS = st.lists(st.sampled_from([0.2, 1.0, 4.5, 14.0, -0.3, -0.8]), min_size=1, max_size=6)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


def signature(outputs: list) -> list:
    return [
        (output.item, output.number, output.samples.tobytes()) if isinstance(output, Utterance) else output
        for output in outputs
    ]


@settings(deadline=None, max_examples=40)
@given(PARTS, st.lists(st.integers(0, 2_000_000), max_size=20), st.booleans(), st.sampled_from([16_000, 24_000]))
def test_any_split_of_the_audio_gives_the_same_events_and_utterances(parts, cuts, turns, rate):
    data = spoken(*parts)
    whole, pieces = session(turns=turns, rate=rate), session(turns=turns, rate=rate)
    expected = append(whole, data) + send(whole, "commit")
    outputs = [output for piece in split(data, cuts) for output in append(pieces, piece)] + send(pieces, "commit")
    assert signature(outputs) == signature(expected)


@settings(deadline=None, max_examples=60)
@given(PARTS, st.lists(st.integers(0, 2_000_000), max_size=12), st.data())
def test_every_item_ends_once_in_order_and_its_deltas_are_its_transcript(parts, cuts, data):
    begun = session()
    events, waiting = [], []
    actions = [*split(spoken(*parts), cuts), "commit", "clear"]
    for action in actions:
        outputs = append(begun, action) if isinstance(action, bytes) else send(begun, action)
        waiting += [output for output in outputs if isinstance(output, Utterance)]
        events += [output for output in outputs if isinstance(output, dict)]
        last = action == "clear"
        while waiting and (last or data.draw(st.booleans())):
            utterance = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            fails = data.draw(st.sampled_from([False, False, True]))
            texts = st.sampled_from(["one", " two ", "", "你好", "three four"])
            result = InputError("too quiet") if fails else {"text": data.draw(texts)}
            events += begun.transcribed(utterance, result)
    committed = [event["item_id"] for event in of(events, "committed")]
    ended = [event["item_id"] for event in events if event["type"] in (f"{SCRIPT}.completed", f"{SCRIPT}.failed")]
    assert ended == committed
    assert max(Counter(ended).values(), default=0) <= 1
    for completed in of(events, "completed"):
        deltas = [event["delta"] for event in of(events, "delta") if event["item_id"] == completed["item_id"]]
        assert "".join(deltas) == completed["transcript"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([0.5, 3.0, -0.3, -2.0, -20.0]), max_size=30), st.booleans())
def test_what_is_held_is_bounded(parts, turns):
    begun = session(turns=turns)
    for part in parts:
        for second in split(spoken(part), list(range(0, 2_000_000, 32_000))):
            outputs = append(begun, second)
            for output in outputs:
                if isinstance(output, Utterance):
                    begun.transcribed(output, {"text": "x"})
            assert begun._held_samples <= LIMIT_SEC * SAMPLE_RATE + FRAME
            assert sum(map(len, begun._held)) == begun._held_samples
            assert len(begun._items) <= 1


# The session's configuration


def test_the_defaults_are_openai_s():
    (created,) = Session(
        "x", configs.initial("parakeet", detects_turns=True), check=check, detector=Loud, limit_sec=9
    ).start()
    assert created["session"] == {
        "id": "sess_x",
        "object": "realtime.transcription_session",
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24_000},
                "noise_reduction": None,
                "transcription": {"model": "parakeet", "language": None, "prompt": None},
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 500,
                },
            }
        },
        "include": None,
    }


def test_an_update_changes_only_the_fields_it_has():
    begun = session()
    (first,) = update(begun, {"transcription": {"model": "whisper", "language": "de"}})
    (second,) = update(begun, {"turn_detection": {"type": "server_vad", "threshold": 0.7}, "noise_reduction": None})
    audio = second["session"]["audio"]["input"]
    assert audio["transcription"] == first["session"]["audio"]["input"]["transcription"]
    assert audio["transcription"]["language"] == "de"
    assert audio["format"]["rate"] == 16_000
    assert audio["turn_detection"]["threshold"] == 0.7
    assert audio["turn_detection"]["silence_duration_ms"] == 500
    (off,) = update(begun, {"turn_detection": None})
    assert off["session"]["audio"]["input"]["turn_detection"] is None


def test_an_update_reaches_the_utterances():
    begun = session(turns=False)
    event = {
        "type": "session.update",
        "session": {
            "type": "transcription",
            "include": [configs.LOGPROBS],
            "audio": {"input": {"transcription": {"model": "m", "language": "", "prompt": "names"}}},
        },
    }
    assert kinds(begun.receive(json.dumps(event))) == ["updated"]
    append(begun, spoken(1))
    (utterance,) = [output for output in send(begun, "commit") if isinstance(output, Utterance)]
    assert utterance.fields == {"task": "transcribe", "model": "m", "prompt": "names", "include": "logprobs"}
    tokens = [{"token": "hi", "logprob": -0.5, "bytes": [104, 105]}]
    events = begun.transcribed(utterance, {"text": "hi", "logprobs": tokens})
    assert [event["logprobs"] for event in events] == [tokens, tokens]


def test_the_languages_among_which_the_model_detects_reach_the_utterances():
    begun = session(turns=False)
    (updated,) = update(begun, {"transcription": {"languages": ["en-US", "de"]}})
    assert updated["session"]["audio"]["input"]["transcription"]["languages"] == ["en-US", "de"]
    append(begun, spoken(1))
    (utterance,) = [output for output in send(begun, "commit") if isinstance(output, Utterance)]
    assert utterance.fields == {"task": "transcribe", "languages": ["en-US", "de"]}


def test_lists_of_hints_that_are_empty_change_nothing():
    begun = session(turns=False)
    before = begun.config.fields
    assert kinds(update(begun, {"transcription": {"keywords": [], "languages": [""], "delay": None}})) == ["updated"]
    assert begun.config.fields == before


def test_keywords_are_checked_as_on_the_file_route():
    fields = []
    begun = Session(
        "x", configs.initial(None, detects_turns=False), check=fields.append, detector=Loud, limit_sec=LIMIT_SEC
    )
    assert kinds(update(begun, {"transcription": {"keywords": ["Aviary", " "]}})) == ["updated"]
    assert fields == [{"task": "transcribe", "keywords": ["Aviary"]}]


def test_a_delay_is_refused_with_the_reason():
    begun = session()
    (error,) = update(begun, {"transcription": {"delay": "low"}})
    assert error["error"]["param"] == "session.audio.input.transcription.delay"
    assert error["error"]["code"] == "unsupported"
    assert "Leave delay out" in error["error"]["message"]


def test_warnings_are_in_the_completed_event():
    begun = session(turns=False)
    append(begun, spoken(1))
    *_, utterance = send(begun, "commit")
    *_, completed = begun.transcribed(utterance, {"text": "hi", "warning": "An option is ignored"})
    assert completed["warning"] == "An option is ignored"


@pytest.mark.parametrize(
    ("audio", "param"),
    [
        ({"format": {"type": "audio/opus"}}, "session.audio.input.format.type"),
        ({"format": {"type": "audio/pcm", "rate": 44_100}}, "session.audio.input.format"),
        ({"turn_detection": {"type": "semantic_vad"}}, "session.audio.input.turn_detection.type"),
        ({"turn_detection": {"type": "server_vad", "threshold": 2}}, "session.audio.input.turn_detection.threshold"),
        ({"transcription": {"model": "nobody"}}, "model"),
        ({"noise_reduction": {"type": "loud"}}, "session.audio.input.noise_reduction.type"),
        ({"noise_reduction": {"note": "x"}}, "session.audio.input.noise_reduction.note"),
        ({"transcription": None}, "session.audio.input.transcription"),
        ({"voice": "alloy"}, "session.audio.input.voice"),
        (3, "session.audio.input"),
    ],
)
def test_a_wrong_update_changes_nothing_and_names_the_field(audio, param):
    begun = session()
    before = begun.config
    (error,) = update(begun, audio)
    assert error["type"] == "error"
    assert error["error"]["param"] == param
    assert begun.config == before


def test_a_conversation_is_refused():
    begun = session()
    (error,) = begun.receive(json.dumps({"type": "session.update", "session": {"type": "realtime"}}))
    assert error["error"]["param"] == "session.type"


def test_the_beta_s_update_is_understood():
    begun = session(rate=24_000)
    session_fields = {
        "input_audio_format": "g711_ulaw",
        "input_audio_transcription": {"model": "m", "prompt": ""},
        "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
        "input_audio_noise_reduction": {"type": "near_field"},
    }
    (event,) = begun.receive(json.dumps({"type": "transcription_session.update", "session": session_fields}))
    assert event["type"] == "transcription_session.updated"
    assert event["session"]["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert event["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 300
    (error,) = begun.receive(
        json.dumps({"type": "transcription_session.update", "session": {"input_audio_format": "mp3"}})
    )
    assert error["error"]["param"] == "session.audio.input.format.type"


def test_turn_detection_without_the_detector_s_libraries_is_refused_with_the_advice():
    begun = session(turns=False, detector=absent)
    (error,) = update(begun, {"turn_detection": {"type": "server_vad"}})
    assert "silero-vad" in error["error"]["message"]
    assert begun.config.input.turn_detection is None


def test_another_format_or_turn_detection_ends_the_open_turn():
    begun = session()
    outputs = append(begun, spoken(-0.5, 1)) + update(begun, {"turn_detection": None})
    assert kinds(outputs) == ["speech_started", "committed", "added", "done", "updated"]
    append(begun, spoken(0.5))
    assert "committed" in kinds(send(begun, "commit"))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("{", None),
        ("[" * 100_000, None),
        ("[]", None),
        ("{}", "type"),
        ('{"type": "response.create"}', "type"),
        ('{"type": ["x"]}', "type"),
        ('{"type": "input_audio_buffer.append"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "@@"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "ä"}', "audio"),
        ('{"type": "session.update", "session": 3}', "session"),
        ('{"type": "transcription_session.update"}', "session"),
    ],
)
def test_a_wrong_event_gets_an_error_event_and_the_session_goes_on(message, param):
    begun = session()
    (error,) = begun.receive(message)
    assert error["type"] == "error"
    assert error["error"]["param"] == param
    assert "completed" in kinds(finish(begun, append(begun, spoken(-0.5, 1, -1))))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "x" * 100_000},
        {"type": ["x"] * 100_000},
        {"type": "session.update", "session": {"x" * 100_000: 1}},
        {"type": "session.update", "event_id": "x" * 100_000, "session": 3},
    ],
    ids=["type", "list", "field", "event_id"],
)
def test_an_error_repeats_little_of_what_the_client_sent(event):
    (error,) = session().receive(json.dumps(event))
    assert len(json.dumps(error)) < 1000
    assert error["error"]["message"].endswith(("input_audio_buffer.clear", "not permitted", "an object"))


def test_the_last_event_of_a_session_that_breaks_is_an_event_like_any_other():
    (created,) = (begun := session()).start()
    last = begun.failure(InternalError("unexpected error (log id 5)"))
    assert last["type"] == "error"
    assert last["event_id"] != created["event_id"]
    assert last["error"]["event_id"] is None
    assert last["error"]["message"] == "unexpected error (log id 5)"


def test_an_error_names_the_event_that_caused_it():
    (error,) = session().receive('{"type": "nonsense", "event_id": "mine"}')
    assert error["error"]["event_id"] == "mine"
    assert "input_audio_buffer.append" in error["error"]["message"]


# Hysteresis


def test_a_turn_lasts_through_uncertain_frames():
    turns = TurnDetector(0.5, 96)
    marks = [turns.step(p) for p in (0.6, 0.6, 0.4, 0.4, 0.1, 0.4, 0.6, 0.1, 0.4, 0.1, 0.1)]
    assert marks == [None, "start", None, None, None, None, None, None, None, "stop", None]
