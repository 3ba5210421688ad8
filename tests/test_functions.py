"""The plain functions of paths: what they answer, on a dry run and on pocketsphinx."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from conftest import DIGITS, LABELS
from serving import serving

from worker.config import Settings
from worker.entrypoints import functions, python
from worker.errors import RequestError, SourceNotFound, Unsupported
from worker.manifest import process_manifest

WEEK = Path(__file__).resolve().parent.parent / "samples" / "week.wav"


@pytest.fixture(scope="module")
def dry():
    with python.load(Settings(skip_model_load=True, model="audio-flamingo"), "audio-flamingo") as bundle:
        yield bundle


@pytest.fixture(scope="module")
def ears():
    with python.load_model(model="pocketsphinx") as bundle:
        yield bundle


def test_answers_have_the_documented_shapes(ears):
    result = functions.transcribe_file(path=str(WEEK), model_bundle=ears, prompt=None, max_new_tokens=128)
    assert result.pop("elapsed_sec") > 0
    assert result == {"file": str(WEEK), "text": "see you next week", "tokens_generated": None}
    results = functions.transcribe_files(
        paths=[str(WEEK), "/nowhere/a.wav", WEEK.with_name("train.mp4")], model_bundle=ears, max_new_tokens=128
    )
    assert [one["file"] for one in results] == [str(WEEK), "/nowhere/a.wav", str(WEEK.with_name("train.mp4"))]
    assert results[0]["text"] == "see you next week"
    assert results[1]["error"]["code"] == "source_not_found"
    assert results[2]["text"]
    assert results[2].keys() == {"file", "text", "tokens_generated", "elapsed_sec"}


def test_a_bound_on_tokens_reaches_the_models_that_write_and_only_them(dry, ears):
    assert "max_new_tokens" in functions._options(dry, None, 128)
    assert functions._options(ears, None, 128) == {}
    with pytest.raises(Unsupported, match="does not accept prompt"):
        functions.transcribe_file(str(WEEK), ears, prompt="Transcribe this audio:")
    assert functions.transcribe_file(str(WEEK), dry, prompt="Transcribe this audio:")["text"].startswith("[dry-run]")


def test_one_bad_file_raises_and_no_files_are_no_results(dry):
    with pytest.raises(SourceNotFound):
        functions.transcribe_file("/nowhere/a.wav", dry)
    assert functions.transcribe_files([], dry) == []
    (result,) = functions.transcribe_files((path for path in [WEEK]), dry)
    assert result["file"] == str(WEEK)


@pytest.mark.slow
def test_a_folder_is_evaluated(tmp_path, dry):
    for name in ("00", "01"):
        (tmp_path / f"{name}.txt").write_text(LABELS[f"{name}.flac"])
        (tmp_path / f"{name}.flac").symlink_to(DIGITS / f"{name}.flac")
    answer = functions.evaluate_folder(audio_dir=tmp_path, gt_dir=tmp_path, model_bundle=dry, match_mode="exact")
    assert answer["summary"]["count"] == answer["summary"]["fp"] == 2
    assert [detail["file"] for detail in answer["details"]] == ["00.flac", "01.flac"]
    with pytest.raises(RequestError, match="not a folder"):
        functions.evaluate_folder(tmp_path / "none", tmp_path, dry)


def test_no_function_bounds_the_new_tokens_by_itself(monkeypatch, tmp_path, dry):
    (tmp_path / "00.txt").write_text(LABELS["00.flac"])
    (tmp_path / "00.flac").symlink_to(DIGITS / "00.flac")
    submit, bounds = dry.engine.submit, []

    def record(request, **options):
        bounds.extend(item.options.max_new_tokens for item in request.items)
        return submit(request, **options)

    monkeypatch.setattr(dry.engine, "submit", record)
    for bound in ({}, {"max_new_tokens": 7}):
        functions.transcribe_file(str(WEEK), dry, **bound)
        functions.transcribe_files([str(WEEK)], dry, **bound)
        functions.evaluate_folder(tmp_path, tmp_path, dry, **bound)
    assert bounds == [None] * 3 + [7] * 3


def test_a_manifest_is_processed_without_an_event_loop_and_within_one(tmp_path, capsys):
    """The output is that of `process_manifest`, and so is the point where a run resumes."""
    manifest = tmp_path / "set.jsonl"
    manifest.write_text("".join(f'{{"path": "{path}"}}\n' for path in (WEEK, "/nowhere.wav")))
    settings = Settings(skip_model_load=True, data_dir=tmp_path / "data")
    with serving(settings) as url:
        output = functions.process_manifest_sync(manifest, tmp_path / "out", url, progress=True, timestamps=True)
        assert output == tmp_path / "out" / "set.transcribe.jsonl"
        assert "2 lines, 1 failed" in capsys.readouterr().err

        async def within_a_loop():  # as in a notebook
            return functions.process_manifest_sync(manifest, tmp_path / "loop", url, timestamps=True)

        awaited = asyncio.run(process_manifest(manifest, tmp_path / "own", url, task="transcribe", timestamps=True))
        assert awaited.read_text() == output.read_text() == asyncio.run(within_a_loop()).read_text()
        with pytest.raises(RequestError, match="Did you mean timestamps"):
            functions.process_manifest_sync(manifest, tmp_path / "other", url, time_stamps=True)
        with pytest.raises(RequestError, match="unsupported task 'sing'"):
            functions.process_manifest_sync(manifest, tmp_path, url, task="sing")
    first, second = map(json.loads, output.read_text().splitlines())
    assert first["pred_text"] == "[dry-run] transcribe of 1.27 s"
    assert first["timestamps"]["word"]
    assert second["error"]["code"] == "source_not_found"
