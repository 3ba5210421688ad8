"""Evaluation through the engine: the embedded model on the samples, counted by hand, and the dry run for what goes
wrong."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import tone

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import ModelError, ModelNotFound, RequestError, TooManyInputs, Unsupported
from worker.evaluation import Corpus, Pair, evaluate, prepare, read_folder, read_manifest
from worker.types import Transcript

SAMPLES = Path(__file__).parent.parent / "samples"
HEARD: dict[str, str] = json.loads((SAMPLES / "texts.json").read_text())

LABELS = {  # words, and what is wrong
    "doctor.txt": "The doctor will see you\n in  twenty minutes ",  # 8
    "people.txt": "there was more than two hundred people in a room",  # 10, two substitutions
    "monday.txt": "we will meet again on monday at nine",  # 8, an insertion
    "week.txt": "See you again next week",  # 5, a deletion
    "noise.txt": "cannot be heard",  # 3 deletions: it fails
    "left.txt": "no audio",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    audio, labels = folder / "audio", folder / "labels"
    audio.mkdir()
    labels.mkdir()
    for name in HEARD:
        shutil.copy(SAMPLES / name, audio)
    (audio / "noise.mp3").write_bytes(bytes(range(256)) * 40)
    for name, text in LABELS.items():
        (labels / name).write_text(text)
    return read_folder(audio, labels)


@pytest.fixture(scope="module")
def answer(corpus):
    with Engine(Settings(model="pocketsphinx")) as engine:
        return evaluate(engine, corpus, trusted=True, normalizer="plain")


@pytest.fixture
def dry(tmp_path):
    settings = Settings(skip_model_load=True, allowed_paths=(tmp_path,), data_dir=tmp_path / "data", decode_workers=2)
    with Engine(settings) as engine:
        yield engine


class Told(Backend):
    """A model that says what it is told to, of clips told apart by their length, and can be held."""

    overhead_sec = 100.0

    def __init__(self, says: dict[float, str | Exception] | None = None, language: str | None = None) -> None:
        self.says, self.language, self.gate, self.batches = says or {}, language, threading.Event(), []

    def load(self) -> None:
        self.gate.set()

    def infer(self, batch):
        self.gate.wait(10)
        self.batches.append(len(batch.pieces))
        said = [self.says.get(piece.duration_sec, "") for piece in batch.pieces]
        for one in said:
            if isinstance(one, Exception):
                raise one
        return [
            Transcript(text, language=piece.options.language or self.language)
            for text, piece in zip(said, batch.pieces, strict=True)
        ]

    def close(self) -> None:
        pass


def hear(
    tmp_path, pairs: list[tuple[str, str | Exception]], language: str | None = None, options: dict | None = None, **how
):
    """The answer of a model that hears each pair's second text where its first is the label."""
    files = [str(tone(tmp_path / f"{i}.wav", i)) for i in range(1, len(pairs) + 1)]
    model = Told({float(i): said for i, (_, said) in enumerate(pairs, 1)}, language)
    corpus = Corpus(tuple(Pair(Path(file).name, file, label) for file, (label, _) in zip(files, pairs, strict=True)))
    with Engine(Settings(model="whisper", data_dir=tmp_path / "data"), create_backend=lambda _row: model) as engine:
        return evaluate(engine, corpus, options, trusted=True, **how)


# Counting


@pytest.mark.slow
def test_the_summary_of_the_samples_is_what_a_hand_counts(answer):
    summary = answer["summary"]
    counted = {
        "count": 5,
        "tp": 1,
        "fp": 4,
        "fn": 4,
        "precision": 0.2,
        "recall": 0.2,
        "f1": 0.2,
        "failed": 1,
        "substitutions": 2,
        "insertions": 1,
        "deletions": 4,
        "words": 34,
        "wer": 7 / 34,
        "unlabelled": ["train.mp4", "window.ogg"],
        "missing_audio": ["left.txt"],
        "model": "pocketsphinx",
        "match_mode": "exact",
        "normalizer": "plain",
        "plain_wer": 7 / 34,
    }
    assert {name: summary[name] for name in counted} == counted
    assert summary["audio_sec"] == pytest.approx(9.4, abs=0.2)
    assert summary["rtfx"] == pytest.approx(summary["audio_sec"] / summary["total_sec"], rel=0.01)


def test_the_details_of_the_samples_in_order(answer):
    details = answer["details"]
    assert [
        (one["file"], one["match"], one["substitutions"], one["insertions"], one["deletions"], one["words"])
        for one in details
    ] == [
        ("doctor.flac", 1, 0, 0, 0, 8),
        ("monday.m4a", 0, 0, 1, 0, 8),
        ("noise.mp3", 0, 0, 0, 3, 3),
        ("people.mp3", 0, 2, 0, 0, 10),
        ("week.wav", 0, 0, 0, 1, 5),
    ]
    assert {one["file"]: one["pred"] for one in details} == {"noise.mp3": ""} | {
        name: HEARD[name] for name in ("doctor.flac", "monday.m4a", "people.mp3", "week.wav")
    }
    assert details[0]["gt"] == "The doctor will see you in twenty minutes"
    assert details[1]["wer"] == 1 / 8
    assert details[4]["cer"] == 6 / len("see you again next week")


def test_a_file_that_fails_is_a_miss_with_its_error(answer):
    failed = answer["details"][2]
    assert failed["error"]["code"] == "decode_failed"
    assert (failed["match"], failed["wer"], failed["cer"]) == (0, 1.0, 1.0)
    assert "duration_sec" not in failed
    assert [one["file"] for one in answer["details"] if "error" in one] == ["noise.mp3"]


def test_the_answer_is_strict_json(answer):
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_a_failed_file_does_not_match_an_empty_label_but_silence_does(tmp_path):
    answer = hear(tmp_path, [("", ""), ("", "oh yes"), ("", ModelError("broken"))])
    assert [(one["match"], one["wer"], one["insertions"]) for one in answer["details"]] == [
        (1, 0.0, 0),
        (0, 2.0, 2),
        (0, 0.0, 0),
    ]
    summary = answer["summary"]
    assert (summary["tp"], summary["fn"], summary["failed"], summary["words"], summary["wer"]) == (1, 2, 1, 0, 2.0)


def test_nothing_heard_right_is_zero_and_not_an_error(tmp_path):
    summary = hear(tmp_path, [("a b", "c"), ("d", "e f g")])["summary"]
    assert (summary["precision"], summary["recall"], summary["f1"], summary["wer"]) == (0.0, 0.0, 0.0, 5 / 3)


def test_the_corpus_rates_are_over_all_words_not_over_files(tmp_path):
    answer = hear(tmp_path, [("one", "two"), ("a b c d e f g h i", "a b c d e f g h i"), ("日本 é", "日本 é")])
    assert answer["summary"]["wer"] == 1 / 12
    assert answer["summary"]["cer"] == 3 / (3 + 17 + 4)
    assert answer["summary"]["characters"] == 24
    assert answer["details"][2]["match"] == 1


# Matching and normalising


@pytest.mark.parametrize(
    ("match_mode", "normalizer", "match", "wer"),
    [
        ("exact", "basic", [1, 0, 0], 4 / 5),
        ("normalized", "basic", [1, 1, 0], 4 / 5),
        ("exact", "plain", [1, 0, 0], 4 / 5),
        ("exact", "whisper", [1, 0, 0], 1 / 4),
        ("normalized", "whisper", [1, 1, 0], 1 / 4),
    ],
)
def test_how_a_match_and_the_rates_are_normalised(tmp_path, match_mode, normalizer, match, wer):
    pairs = [("Yes ", "YES"), ("Twenty one, sir.", "21 sir"), ("no", "yes")]
    answer = hear(tmp_path, pairs, "en", match_mode=match_mode, normalizer=normalizer)
    assert [one["match"] for one in answer["details"]] == match
    if normalizer == "whisper":
        assert (answer["summary"]["words"], answer["summary"]["wer"]) == (4, wer)
    else:
        assert (answer["summary"]["words"], answer["summary"]["wer"]) == (5, wer)


def test_by_default_whispers_normalizer_counts_and_the_plain_rates_stand_beside_it(tmp_path):
    report = hear(tmp_path, [("Yes.", "yes"), ("Twenty one, sir.", "21 sir"), ("no", "yes")], "en")
    summary, details = report["summary"], report["details"]
    assert (summary["normalizer"], summary["words"]) == ("whisper", 4)
    assert (summary["wer"], summary["cer"]) == (1 / 4, 3 / 11)
    assert (summary["plain_wer"], summary["tp"]) == (5 / 5, 0)
    assert [one["wer"] for one in details] == [0.0, 0.0, 1.0]
    assert [one["plain_wer"] for one in details] == [1.0, 1.0, 1.0]
    assert details[0]["plain_cer"] == 1 / 4
    assert list(summary).index("plain_wer") < list(summary).index("precision")


@pytest.mark.parametrize(
    ("told", "asked", "words"),
    [("en", None, 1), (None, "en", 1), (None, "English", 1), ("de", None, 2), (None, "auto", 2), (None, None, 2)],
)
def test_the_language_of_the_transcript_chooses_whispers_normaliser(tmp_path, told, asked, words):
    options = {"language": asked} if asked else {}
    answer = hear(
        tmp_path, [("twenty one", "21"), ("twenty one", ModelError("broken"))], told, options, normalizer="whisper"
    )
    assert answer["details"][0]["words"] == words
    assert answer["details"][1]["words"] == (1 if asked in ("en", "English") else 2)
    assert answer["details"][0]["language"] == (told or {"English": "en", "auto": None}.get(asked, asked))


@pytest.mark.parametrize(
    ("how", "known"),
    [({"match_mode": "fuzzy"}, "exact or normalized"), ({"normalizer": "none"}, "whisper or plain or basic")],
)
def test_an_unknown_mode_is_refused_with_those_that_are_known(how, known):
    with pytest.raises(RequestError, match=rf"unsupported {next(iter(how))} .*; use {known}") as refused:
        prepare(Corpus((Pair("a.wav", "/a.wav", ""),)), Settings(), **how)
    assert refused.value.param == next(iter(how))


# Requests


def test_a_corpus_without_a_pair_is_refused_and_says_what_there_is():
    with pytest.raises(RequestError, match="2 audio files have no label, and 1 labels have no audio"):
        prepare(Corpus((), ("a.wav", "b.wav"), ("c.txt",)), Settings())


def test_options_are_those_of_a_payload_and_checked_alike():
    corpus = Corpus((Pair("a.wav", "/a.wav", ""),))
    options = {"model": "audio-flamingo", "prompt": "Transcribe this.", "max_new_tokens": 128}
    request = prepare(corpus, Settings(), options).request
    assert (request.model, request.items[0].options.prompt) == ("nvidia/audio-flamingo-3-hf", "Transcribe this.")
    assert request.items[0].options.max_new_tokens == 128
    for wrong, error in (
        ({"model": "nonesuch"}, ModelNotFound),
        ({"model": "parakeet", "prompt": "x"}, Unsupported),
        ({"pront": "x"}, RequestError),
        ({"model": 5}, RequestError),
    ):
        with pytest.raises(error):
            prepare(corpus, Settings(), wrong)


def test_a_manifests_language_goes_to_models_that_take_one():
    corpus = Corpus((Pair("a.wav", "/a.wav", "", "de"), Pair("b.wav", "/b.wav", "")))
    for model, asked in (("canary", ["de", "en"]), ("audio-flamingo", [None, None])):
        options = {"model": model} | ({"language": "en"} if model == "canary" else {})
        assert [item.options.language for item in prepare(corpus, Settings(), options).request.items] == asked


def test_a_corpus_may_be_larger_than_a_payload_where_it_is_trusted():
    corpus = Corpus(tuple(Pair(f"{i}.wav", f"/{i}.wav", "") for i in range(30)))
    settings = Settings(max_inputs=20)
    assert prepare(corpus, settings, trusted=True).request.size == 30
    with pytest.raises(TooManyInputs):
        prepare(corpus, settings)


def test_paths_outside_allowed_paths_are_read_only_where_the_corpus_is_trusted(dry, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    corpus = Corpus((Pair("a.wav", str(tone(outside / "a.wav", 1)), "[dry-run] transcribe of 1.00 s"),))
    assert evaluate(dry, corpus)["details"][0]["error"]["code"] == "source_forbidden"
    assert evaluate(dry, corpus, trusted=True)["summary"]["tp"] == 1


def test_a_manifest_from_end_to_end(dry, tmp_path):
    tone(tmp_path / "a.wav", 1)
    rows = [{"audio_filepath": "a.wav", "text": "[DRY-RUN]  transcribe of\n1.00 s", "duration": 1.0}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answer = evaluate(dry, read_manifest(tmp_path / "m.jsonl"))
    assert (answer["summary"]["tp"], answer["details"][0]["file"]) == (1, "a.wav")


def test_a_file_that_breaks_off_is_told_in_its_detail(dry, tmp_path):
    (tmp_path / "cut.wav").write_bytes((SAMPLES / "week.wav").read_bytes()[:20_000])
    files = (tmp_path / "cut.wav", SAMPLES / "week.wav")
    answer = evaluate(dry, Corpus(tuple(Pair(file.name, str(file), "") for file in files)), trusted=True)
    cut, whole = answer["details"]
    assert cut["warning"] == "the file is truncated after 0.46 of 1.30 s"
    assert "warning" not in whole


def test_files_share_batches_and_each_is_told_as_it_is_done(tmp_path):
    model, told = Told(), []
    files = [str(tone(tmp_path / f"{i}.wav", 1)) for i in range(24)]
    corpus = Corpus(tuple(Pair(file, file, "") for file in files))
    settings = Settings(model="parakeet", data_dir=tmp_path / "data", batch_wait_sec=0.5)
    with Engine(settings, create_backend=lambda _row: model) as engine:
        evaluate(engine, corpus, trusted=True, on_result=lambda one: told.append(one.index))
    assert sum(model.batches) == 24
    assert max(model.batches) > 1
    assert sorted(told) == list(range(24))


def test_interrupted_it_drops_what_is_left(tmp_path):
    """As by Ctrl-C at a terminal."""

    class Held(Told):
        def load(self) -> None:
            pass

    model = Held()
    corpus = Corpus(tuple(Pair(f"{i}.wav", str(tone(tmp_path / f"{i}.wav", 70 + i)), "") for i in range(6)))
    settings = Settings(model="parakeet", data_dir=tmp_path / "data", decode_workers=2, short_max_sec=1)
    main = threading.main_thread().ident
    assert main is not None
    with Engine(settings, create_backend=lambda _row: model) as engine:
        timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            evaluate(engine, corpus, trusted=True)
        timer.join()
        model.gate.set()
        deadline = time.monotonic() + 5
        while engine.held_sec > 1e-6 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.held_sec == pytest.approx(0, abs=1e-6)
    assert sum(model.batches) <= 1
