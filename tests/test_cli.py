"""The command line, as processes of its own: what is typed, what is written where, exit codes, Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path, PurePath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.entrypoints.cli import arguments, main
from worker.entrypoints.cli.inputs import Input, expand, places
from worker.errors import RequestError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
WEEK = str(SAMPLES / "week.wav")
DRY = {"SKIP_MODEL_LOAD": "1"}


def command(*typed: str | Path) -> list[str]:
    return [sys.executable, "-m", "worker", *map(str, typed)]


def environment(**more: str) -> dict[str, str]:
    ours = {"MODEL", "MODEL_DIR", "MODEL_NAME", "PARAKEET_MODEL", "SKIP_MODEL_LOAD", "PYTHONUNBUFFERED"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def aviary(
    *typed: str | Path, cwd: Path = ROOT, code: int = 0, stdin: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*typed),
        cwd=cwd,
        env=environment(**(env or DRY)),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def here(capsys: pytest.CaptureFixture[str], *typed: str | Path) -> str:
    """What a dry run in this process writes to stdout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIP_MODEL_LOAD", "1")
        assert main([str(one) for one in typed]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *typed: str | Path) -> str:
    """What is said to a command that is refused before anything is begun."""
    try:
        code = main([str(one) for one in typed])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


# The offline runner's commands


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folders of its document: audio1.wav, audio2.mp3, audio3.flac, audio/ and labels/."""
    shutil.copy(WEEK, tmp_path / "audio1.wav")
    shutil.copy(SAMPLES / "people.mp3", tmp_path / "audio2.mp3")
    shutil.copy(SAMPLES / "doctor.flac", tmp_path / "audio3.flac")
    for folder in ("audio", "labels", "model"):
        (tmp_path / folder).mkdir()
    for name, label in (("week.wav", " See you\n next week"), ("people.mp3", "something else")):
        shutil.copy(SAMPLES / name, tmp_path / "audio")
        (tmp_path / "labels" / name).with_suffix(".txt").write_text(label)
    return tmp_path


def test_the_earlier_transcribe_of_one_file(data):
    done = aviary(
        "--model-dir",
        "model",
        "transcribe",
        "--path",
        "audio1.wav",
        "--prompt",
        "Transcribe this audio:",
        "--max-new-tokens",
        "128",
        "--output",
        "results.json",
        cwd=data,
    )
    assert done.stdout == ""
    (result,) = json.loads((data / "results.json").read_text())["results"]
    assert (result["file"], result["text"]) == ("audio1.wav", "[dry-run] transcribe of 1.27 s")
    assert {"tokens_generated", "elapsed_sec"} <= result.keys()


def test_the_earlier_transcribe_of_many_files(data):
    done = aviary(
        "transcribe", "--paths", "audio1.wav", "audio2.mp3", "audio3.flac", "--max-new-tokens", "128", cwd=data
    )
    answer = json.loads(done.stdout)
    assert [one["file"] for one in answer["results"]] == ["audio1.wav", "audio2.mp3", "audio3.flac"]
    assert answer["usage"]["inputs"] == 3
    assert {path.name for path in data.iterdir()} == {
        "audio1.wav",
        "audio2.mp3",
        "audio3.flac",
        "audio",
        "labels",
        "model",
    }


def test_the_earlier_evaluate(data):
    aviary(
        "evaluate",
        "--audio-dir",
        "audio",
        "--gt-dir",
        "labels",
        "--max-new-tokens",
        "128",
        "--match-mode",
        "exact",
        "--output",
        "eval_results.json",
        "--html",
        "page.html",
        cwd=data,
        MODEL="pocketsphinx",
    )
    answer = json.loads((data / "eval_results.json").read_text())
    assert (answer["summary"]["count"], answer["summary"]["tp"], answer["summary"]["fp"]) == (2, 1, 1)
    assert [(one["file"], one["match"]) for one in answer["details"]] == [("people.mp3", 0), ("week.wav", 1)]
    assert "something else" in (data / "page.html").read_text()


def test_what_an_evaluation_could_not_use_is_told(data):
    (data / "audio/cut.wav").write_bytes(Path(WEEK).read_bytes()[:20_000])
    (data / "labels/cut.txt").write_text("see you")
    (data / "labels/left.txt").write_text("no audio")
    shutil.copy(WEEK, data / "audio/heard.wav")
    done = aviary("evaluate", "--audio-dir", "audio", "--gt-dir", "labels", cwd=data)
    assert done.stderr.splitlines()[:-1] == [
        "aviary: cut.wav: the file is truncated after 0.46 of 1.30 s",
        "aviary: audio without a label: 1: heard.wav",
        "aviary: labels without audio: 1: left.txt",
    ]


def test_an_evaluation_ends_with_its_rates_in_a_line_and_counts_what_has_no_label(data):
    for i in range(20):
        shutil.copy(WEEK, data / f"audio/extra{i:02}.wav")
    (data / "labels/week.txt").write_text("See you, next week!")
    done = aviary("evaluate", "--audio-dir", "audio", "--gt-dir", "labels", cwd=data, MODEL="pocketsphinx")
    names = "extra00.wav, extra01.wav, extra02.wav, extra03.wav, extra04.wav, and 15 more"
    unlabelled, rates = done.stderr.splitlines()
    assert unlabelled == f"aviary: audio without a label: 20: {names}"
    summary = json.loads(done.stdout)["summary"]
    assert (summary["wer"], summary["plain_wer"]) == (9 / 6, 12 / 6), "200, the comma and the exclamation mark"
    assert rates == (
        f"aviary: WER {summary['wer']:.1%}, CER {summary['cer']:.1%} (whisper); "
        f"WER {summary['plain_wer']:.1%}, CER {summary['plain_cer']:.1%} (plain: punctuation counts); "
        "0 of 2 files match their label (exact); 0 failed"
    )
    assert len(summary["unlabelled"]) == 20


def test_the_page_of_an_evaluation_links_to_the_audio(data):
    (data / "reports").mkdir()
    aviary("evaluate", "--audio-dir", "audio", "--gt-dir", "labels", "--html", "reports/page.html", cwd=data)
    links = re.findall(r'<a href="([^"]+)"', (data / "reports/page.html").read_text())
    assert sorted(links) == ["../audio/people.mp3", "../audio/week.wav"]
    assert all((data / "reports" / link).is_file() for link in links)


# Inputs and results


def test_a_bad_input_stands_in_its_place_and_makes_the_exit_code_1():
    done = aviary("transcribe", WEEK, "nope.mp3", SAMPLES / "people.mp3", code=1)
    first, bad, last = json.loads(done.stdout)["results"]
    assert (first["text"], last["text"]) == ("[dry-run] transcribe of 1.27 s", "[dry-run] transcribe of 3.07 s")
    assert bad == {
        "index": 1,
        "file": "nope.mp3",
        "error": {"code": "source_not_found", "message": "no such file: nope.mp3", "retryable": False},
    }
    assert done.stderr == "aviary: nope.mp3: source_not_found: no such file: nope.mp3\naviary: 1 of 3 inputs failed\n"


def test_a_file_that_breaks_off_is_told_whatever_the_format(tmp_path):
    (tmp_path / "cut.wav").write_bytes(Path(WEEK).read_bytes()[:20_000])
    done = aviary("transcribe", WEEK, "cut.wav", "--format", "txt", "--output", tmp_path / "texts/", cwd=tmp_path)
    assert done.stderr == "aviary: cut.wav: the file is truncated after 0.46 of 1.30 s\n"


def test_lines_of_a_list_on_stdin_and_nothing_else_in_a_pipe():
    done = aviary(
        "transcribe", "-", "--format", "jsonl", stdin=f"{WEEK}\n\n{SAMPLES / 'people.mp3'}\n", MODEL="pocketsphinx"
    )
    lines = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda line: line["index"])
    assert [line["text"] for line in lines] == [
        "see you next week",
        "there were more than two hundred people in the room",
    ]
    assert done.stderr == "aviary: found 2 inputs\n"


def test_a_folder_of_subtitles_keeps_names_and_resolves_those_that_meet(tmp_path):
    (tmp_path / "in" / "deep" / ".hidden").mkdir(parents=True)
    for name in ("a.wav", "a.mp3", "deep/a.wav", "deep/.hidden/b.wav", "notes.txt"):
        shutil.copy(WEEK, tmp_path / "in" / name)
    aviary(
        "transcribe",
        tmp_path / "in",
        tmp_path / "in" / "a.wav",
        tmp_path / "none.wav",
        "--format",
        "srt",
        "--output",
        f"{tmp_path}/out/",
        code=1,
    )
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert made == {"a.wav.srt", "a.mp3.srt", "a.wav-2.srt", "deep/a.srt"}
    cue = "1\n00:00:00,000 --> 00:00:01,268\n[dry-run] transcribe of 1.27 s\n"
    assert (tmp_path / "out" / "deep" / "a.srt").read_text() == cue


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_is_said_in_a_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "worker", "transcribe", WEEK],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "SKIP_MODEL_LOAD": "1"},
            timeout=60,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "aviary: No space left on device\n")


def test_names_as_long_as_a_file_system_takes_have_results_too(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    long = "я" * 124
    for name in (f"{long}.wav", f"{long}.mp3", f"{'я' * 125}.ogg", "z.wav"):
        shutil.copy(WEEK, tmp_path / "in" / name)
    here(capsys, "transcribe", tmp_path / "in", "--format", "srt", "--output", f"{tmp_path}/out/")
    made = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(made) == 4
    assert all(name.endswith(".srt") and not name.startswith(".") for name in made)


def test_each_format_of_one_and_of_many(capsys):
    one = {form: here(capsys, "transcribe", WEEK, "--format", form) for form in ("txt", "text", "vtt", "verbose_json")}
    assert one["txt"] == one["text"] == "[dry-run] transcribe of 1.27 s\n"
    assert one["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert json.loads(one["verbose_json"])["duration"] == 1.268
    people = str(SAMPLES / "people.mp3")
    assert here(capsys, "caption", WEEK, people, "--format", "txt") == (
        f"==> {WEEK} <==\n[dry-run] caption of 1.27 s\n\n==> {people} <==\n[dry-run] caption of 3.07 s\n"
    )
    many = json.loads(here(capsys, "transcribe", WEEK, people, "--format", "verbose_json", "--language", "en"))
    assert [(one["file"], one["language"]) for one in many] == [(WEEK, "en"), (people, "en")]


def test_vectors_and_answers(capsys, tmp_path):
    here(capsys, "embed", WEEK, "--format", "npy", "--output", tmp_path / "week.npy")
    assert np.load(tmp_path / "week.npy").shape == (32, 1280)
    (result,) = json.loads(here(capsys, "chat", WEEK, "--prompt", "What is it?", "--system", "Be brief."))["results"]
    assert result["finish_reason"] == "stop"
    (result,) = json.loads(here(capsys, "analyze", WEEK, "--pooling", "mean"))["results"]
    assert (result["caption"], result["shape"]) == ("[dry-run] analyze of 1.27 s", [1280])
    scored = json.loads(here(capsys, "score", WEEK, "--reference", WEEK, "--model", "whisper"))
    assert scored["usage"] == {"inputs": 1, "failed": 0}
    (result,) = scored["results"]
    assert (result["file"], result["text_sim_score"]) == (WEEK, 1.0)
    (result,) = json.loads(here(capsys, "transcribe", WEEK, "--timestamps", "word,segment"))["results"]
    assert result["timestamps"].keys() == {"word", "segment"}


def test_a_name_that_is_not_utf_8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    shutil.copy(WEEK, path)
    assert json.loads(aviary("transcribe", os.fsdecode(path)).stdout)["results"][0]["file"] == f"{tmp_path}/caf?.wav"


@given(
    st.lists(
        st.sampled_from(["a.wav", "a.mp3", "A.wav", "b/a.wav", "a.wav.mp3", "a", "a-2.wav", "a.wav-2"]), max_size=8
    )
)
def test_no_two_results_share_a_file(names):
    chosen = places([Input(name, PurePath(name)) for name in names], ".srt")
    assert len({str(place).casefold() for place in chosen}) == len(names)
    assert [place.parent for place in chosen] == [PurePath(name).parent for name in names]
    assert all(place.suffix == ".srt" for place in chosen)


def test_inputs_are_files_folders_patterns_and_urls(tmp_path):
    for name in ("b.wav", "a.flac", "[1].wav"):
        (tmp_path / name).touch()
    assert [one.source for one in expand([str(tmp_path)])] == [
        f"{tmp_path}/{name}" for name in ("[1].wav", "a.flac", "b.wav")
    ]
    assert [one.source for one in expand([f"{tmp_path}/*.wav"])] == [f"{tmp_path}/[1].wav", f"{tmp_path}/b.wav"]
    assert [one.source for one in expand([f"{tmp_path}/[1].wav"])] == [f"{tmp_path}/[1].wav"]
    (url,) = expand(["https://host/x/..%2fa b.mp3?token=1"])
    assert url == ("https://host/x/..%2fa b.mp3?token=1", PurePath("_2fa_b.mp3"))
    with pytest.raises(RequestError, match="nothing matches"):
        expand([f"{tmp_path}/*.ogg"])


def test_a_pattern_gives_each_file_once_and_needs_audio_only_as_a_whole(tmp_path, monkeypatch):
    for name in ("g/a/b.wav", "g/c.wav", "g/none/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "g/far").symlink_to(tmp_path / "g/a")
    monkeypatch.chdir(tmp_path)
    for pattern in ("g/**/*.wav", "./g/**/*.wav"):
        assert [os.path.normpath(one.source) for one in expand([pattern])] == ["g/a/b.wav", "g/c.wav"]
    for pattern in ("g/**", "./g/**"):
        found = [os.path.normpath(one.source) for one in expand([pattern])]
        assert found == ["g/a/b.wav", "g/c.wav", "g/none/notes.txt"]
    assert [one.source for one in expand(["g/[an]*"])] == ["g/a/b.wav"]
    assert [one.source for one in expand(["g/c.wav", "g/c.wav"])] == ["g/c.wav", "g/c.wav"]
    for nothing in ("g/none", "g/n[o]ne"):
        with pytest.raises(RequestError, match="there is no audio in g/n"):
            expand([nothing])


def test_a_folder_of_inputs_is_read_with_linked_folders_or_refused(tmp_path, monkeypatch):
    for name in ("far/a.AVI", "here/b.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "here/far").symlink_to(tmp_path / "far")
    (tmp_path / "here/again").symlink_to(tmp_path / "here")
    assert [str(one.place) for one in expand([str(tmp_path / "here")])] == ["b.wav", "far/a.AVI"]
    monkeypatch.chdir(tmp_path / "far")
    for _ in range(17):  # a path that is too long to be read, whoever reads it
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    with pytest.raises(RequestError, match=r"(?s)cannot read .*(: File name too long|…)$"):
        expand([str(tmp_path)])


# Folders of results, and resuming


def archive(folder: Path) -> Path:
    """A folder with four clips, of which one is broken, and with what is no input."""
    for name in ("a.wav", "a.mp3", "deep/a.wav", "notes.txt", "cover.jpg", ".hidden.wav", ".git/x.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WEEK, folder / name)
    (folder / "deep" / "broken.wav").write_text("no audio")
    return folder


def files(folder: Path) -> dict[str, int]:
    """The files below a folder and when they were written, in ns."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_format_in_a_folder_that_is_made(tmp_path):
    done = aviary(
        "transcribe", archive(tmp_path / "in"), "--format", "all", "--output-dir", tmp_path / "new" / "out", code=1
    )
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == (
        "aviary: found 4 inputs; left out 2 hidden (.git, .hidden.wav), "
        "2 without a suffix of audio (cover.jpg, notes.txt)"
    )
    forms = ("json", "txt", "srt", "vtt", "lrc", "tsv", "ctm", "stm", "TextGrid", "verbose.json")
    out = tmp_path / "new" / "out"
    assert files(out).keys() == {f"{stem}.{form}" for stem in ("a.wav", "a.mp3", "deep/a") for form in forms}
    text = "[dry-run] transcribe of 1.27 s"
    read = {form: (out / f"deep/a.{form}").read_text() for form in forms}
    result = json.loads(read["json"])
    assert (result["file"], result["text"]) == (str(tmp_path / "in/deep/a.wav"), text)
    assert "formatted" not in result
    assert "timestamps" not in result
    assert json.loads(read["verbose.json"])["segments"][0]["text"] == text
    assert read["txt"] == f"{text}\n"
    assert read["srt"] == f"1\n00:00:00,000 --> 00:00:01,268\n{text}\n"
    assert read["vtt"] == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.268\n{text}\n"
    assert read["lrc"] == f"[00:00.00]{text.replace('[', '(').replace(']', ')')}\n"
    assert read["tsv"] == f"start\tend\ttext\n0\t1268\t{text}\n"
    assert read["ctm"].startswith("a 1 0.000 ")
    assert read["stm"] == f"a 1 unknown 0.000 1.268 {text}\n"
    assert text in read["TextGrid"]


def test_all_formats_of_a_model_without_times_and_of_vectors(capsys, tmp_path):
    here(capsys, "transcribe", WEEK, "--model", "audio-flamingo", "--format", "all", "--output-dir", tmp_path / "a")
    assert files(tmp_path / "a").keys() == {"week.json", "week.txt", "week.verbose.json"}
    here(capsys, "embed", WEEK, "--format", "all", "--output-dir", tmp_path / "b", "--pooling", "mean")
    assert files(tmp_path / "b").keys() == {"week.json", "week.npy"}
    numbers = json.loads((tmp_path / "b/week.json").read_text())["embedding"]
    assert np.array_equal(np.load(tmp_path / "b/week.npy"), np.array(numbers, "<f4"))


def test_no_two_formats_share_a_file(capsys, tmp_path):
    for name in ("a.wav", "a.verbose.wav"):
        shutil.copy(WEEK, tmp_path / name)
    here(capsys, "transcribe", tmp_path, "--format", "verbose_json,json", "--output-dir", tmp_path / "out")
    assert len(files(tmp_path / "out")) == 4


def test_existing_results_are_skipped_if_they_are_whole_and_new(tmp_path):
    folder, out = archive(tmp_path / "in"), tmp_path / "out"
    typed = ("transcribe", folder, "--format", "srt,txt", "--output-dir", out)
    aviary(*typed, code=1)
    first = files(out)
    (out / "a.wav.srt").write_text("")  # as after a crash of the machine
    (out / "a.mp3.txt").unlink()
    os.utime(folder / "deep/a.wav")  # newer than its results
    done = aviary(*typed, "--skip-existing", code=1)
    assert "aviary: overwriting 5 files (a.mp3.srt, a.wav.srt, a.wav.txt, a.srt, a.txt)\n" in done.stderr
    assert "skipping" not in done.stderr
    second = files(out)
    assert second.keys() == first.keys()
    assert all(second[name] > first[name] for name in first)
    done = aviary(*typed, "--skip-existing", code=1)
    assert "aviary: skipping 3 inputs with results\n" in done.stderr
    assert "overwriting" not in done.stderr
    assert "1 of 1 inputs failed" in done.stderr
    assert files(out) == second
    (folder / "deep/broken.wav").unlink()
    done = aviary(*typed, "--skip-existing", MODEL="pocketsphinx")
    assert done.stderr.splitlines()[1:] == ["aviary: skipping 3 inputs with results"]
    assert files(out) == second


def test_lines_of_subtitles_have_the_limits_that_are_typed(tmp_path):
    done = aviary(
        *("transcribe", SAMPLES / "people.mp3", "--language", "English", "--format", "srt"),
        *("--max-line-width", "14", "--max-line-count", "3"),
        MODEL="pocketsphinx",
    )
    cues = [cue.splitlines()[2:] for cue in done.stdout.strip().split("\n\n")]
    assert cues == [["there were", "more than two", "hundred people"], ["in the room"]]
    done = aviary("transcribe", WEEK, "--format", "vtt", "--max-words-per-line", "3", MODEL="pocketsphinx")
    assert re.findall(r"-->.*\n(.*)", done.stdout) == ["see you next", "week"]


def test_what_is_overwritten_is_said(tmp_path):
    typed = ("transcribe", archive(tmp_path / "in"), "--format", "srt,txt", "--output-dir", tmp_path / "out")
    assert "overwriting" not in aviary(*typed, code=1).stderr
    done = aviary(*typed, code=1)
    assert "aviary: overwriting 6 files (a.mp3.srt, a.mp3.txt, a.wav.srt, a.wav.txt, a.srt, …)\n" in done.stderr
    (tmp_path / "one.json").touch()
    done = aviary("transcribe", WEEK, "--output", tmp_path / "one.json")
    assert done.stderr == "aviary: overwriting 1 file (one.json)\n"


def test_ctrl_c_and_the_same_command_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/never.wav"
        typed = ("transcribe", WEEK, url, "--format", "srt,json", "--output-dir", tmp_path, "--skip-existing")
        env = environment(**DRY, ALLOW_PRIVATE_URLS="1", DECODE_WORKERS="1")
        with (
            subprocess.Popen(command(*typed), env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process,
            silent.accept()[0],
        ):
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130
        kept = files(tmp_path)
        assert kept.keys() == {"week.srt", "week.json"}
    done = aviary(*typed, code=1, **DRY, ALLOW_PRIVATE_URLS="1")  # nobody listens at the URL any more
    assert done.stderr.startswith("aviary: skipping 1 input with results\n")
    assert "1 of 1 inputs failed" in done.stderr
    assert files(tmp_path) == kept


def test_failed_inputs_are_listed_and_such_a_list_is_an_input(tmp_path):
    folder, out, failed = archive(tmp_path / "in"), tmp_path / "out", tmp_path / "failed.txt"
    strange = os.fsdecode(b"caf\xe9 [1].wav")
    (folder / "deep" / strange).write_text("no audio")
    (folder / "deep" / "two\nlines.wav").write_text("no audio")
    options = ("--format", "srt", "--output-dir", out, "--failed-list", failed)
    done = aviary("transcribe", folder, "nope.wav", *options, code=1)
    assert "has a line break" in done.stderr
    listed = failed.read_bytes().decode(errors="surrogateescape").splitlines()
    assert sorted(listed) == sorted([f"{folder}/./deep/broken.wav", f"{folder}/./deep/{strange}", "nope.wav"])
    first = files(out)
    for name in ("broken.wav", strange):
        shutil.copy(WEEK, folder / "deep" / name)
    with failed.open("rb") as stdin:
        again = subprocess.run(
            command("transcribe", "-", *options),
            cwd=ROOT,
            env=environment(**DRY),
            stdin=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert again.returncode == 1
    assert files(out).items() >= first.items()
    assert files(out).keys() - first.keys() == {"deep/broken.srt", f"deep/{strange[:-4]}.srt"}
    assert failed.read_text() == "nope.wav\n"


@pytest.mark.parametrize("typed", ["in", "in/", "."])
def test_an_input_is_listed_as_a_path_with_the_same_place(tmp_path, monkeypatch, typed):
    (tmp_path / "in" / "deep" / "er").mkdir(parents=True)
    for name in ("in/a.wav", "in/deep/er/b.wav"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = expand([typed])
    again = expand([source.listed for source in found])
    assert [source.place for source in again] == [source.place for source in found]
    assert all(os.path.samefile(a.source, b.source) for a, b in zip(found, again, strict=True))
    assert [source.listed for source in again] == [source.listed for source in found]


@pytest.mark.parametrize("name", ["a/./../b.wav", "a/.//b.wav", "a/b.wav", "./a/b.wav", "b.wav"])
def test_no_place_is_outside_the_folder_of_results(name):
    assert expand([name]) == [Input(name, PurePath("b.wav"))]


# Usage


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["transcribe"], "no inputs"),
        (["transcribe", WEEK, "--model", "nonesuch"], "unknown model 'nonesuch'"),
        (["transcribe", WEEK, "--format", "mp3"], "invalid choice: 'mp3'"),
        (["transcribe", WEEK, "--timestamps", "word,sentence"], "'sentence' is not one of word, segment, char"),
        (
            ["transcribe", WEEK, WEEK, "--format", "srt"],
            "srt of 2 inputs requires a folder; specify --output-dir FOLDER",
        ),
        (["transcribe", WEEK, "--format", "srt,json"], "srt, json require a folder; specify --output-dir FOLDER"),
        (["transcribe", WEEK, "--format", "srt,all"], "invalid choice: 'all'"),
        (["transcribe", WEEK, "--output", "a.json", "--output-dir", "b"], "not allowed with argument --output"),
        (["transcribe", WEEK, "--output", "a.json", "--skip-existing"], "requires a folder of results"),
        (["transcribe", WEEK, "--failed-list", "/nowhere/failed.txt"], "cannot write /nowhere/failed.txt"),
        (["transcribe", WEEK, "--max-line-width", "30"], "--max-line-width requires --format srt, vtt or lrc"),
        (["transcribe", WEEK, "--format", "srt", "--max-line-width", "0"], "max_line_width"),
        (["transcribe", WEEK, "--model", "audio-flamingo", "--format", "txt,tsv"], "cannot return timestamps"),
        (["transcribe", WEEK, "--language", "Klingon"], "unknown language 'Klingon'; use auto, one of the codes af"),
        (["transcribe", WEEK, "--output", "/nowhere/results.json"], "cannot write /nowhere/results.json"),
        (["transcribe", WEEK, "--output", "/dev/null/"], "cannot write to /dev/null"),
        (["transcribe", WEEK, "--model", "pocketsphinx", "--language", "de"], "unsupported language 'de'"),
        (["transcribe", WEEK, "--model-dir", "/nowhere"], "there is no such folder"),
        (["embed", WEEK, "--model", "parakeet"], "cannot embed"),
        (["chat", WEEK], "--prompt"),
        (["score", WEEK], "--reference"),
        (["score", WEEK, "--config", "c.json"], "--uid"),
        (["evaluate"], "--audio-dir"),
        (["evaluate", "--audio-dir", str(SAMPLES)], "no audio with a label"),
        (["evaluate", "--audio-dir", str(SAMPLES), "--gt-dir", "/nowhere"], "not a folder"),
        (["sing"], "invalid choice: 'sing'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told_before_anything_is_begun(capsys, typed, said):
    assert said in refused(capsys, *typed)


def test_a_bound_on_tokens_is_no_reason_to_refuse():
    done = aviary("transcribe", WEEK, "--max-new-tokens", "128", MODEL="pocketsphinx")
    assert json.loads(done.stdout)["results"][0]["text"] == "see you next week"
    assert "--max-new-tokens changes nothing" in done.stderr


@pytest.mark.parametrize(
    "typed",
    [
        ["--model", "whisper", "transcribe", "a"],
        ["transcribe", "a", "--model", "whisper"],
        ["--model", "canary", "transcribe", "--model", "whisper", "a"],
    ],
)
def test_the_model_may_stand_before_the_command(typed):
    assert arguments.parser().parse_args(typed).model == "whisper"


def test_help_loads_nothing():
    code = (
        "import sys, contextlib; from worker.entrypoints.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "assert not {'pydantic', 'numpy', 'torch', 'requests'} & set(sys.modules), sys.modules.keys()"
    )
    for typed in (["--help"], ["transcribe", "--help"]):
        called = [sys.executable, "-c", code, *typed]
        assert (
            "--model-dir"
            in subprocess.run(called, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout
        )


# Terminals, pipes and signals


def on_a_terminal(*typed, **env) -> str:
    """What a command writes to stderr if that is a terminal."""
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    with subprocess.Popen(
        command(*typed), env=environment(**DRY, **env), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=end
    ):
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's end, on Linux
            while block := os.read(terminal, 4096):
                shown += block
    os.close(terminal)
    return shown.decode()


def test_a_bar_on_a_terminal_and_results_in_the_pipe():
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(
        command("transcribe", SAMPLES), env=environment(**DRY), cwd=ROOT, stdout=subprocess.PIPE, stderr=end
    ) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's end, on Linux
            while block := os.read(terminal, 4096):
                shown += block
        assert process.stdout is not None
        assert len(json.loads(process.stdout.read())["results"]) == 6
    os.close(terminal)
    last = re.split(r"[\r\n]+", shown.decode().strip())[-1]
    assert re.fullmatch(r"6 files, 1\d\.\d s of audio in 0:0\d, \d+(\.\d)?x real time", last), last


def test_a_bar_tells_of_failures_as_they_happen_and_counts_them(tmp_path):
    shown = on_a_terminal("transcribe", WEEK, tmp_path / "none.wav", "--output", tmp_path / "out.json")
    assert shown.count("none.wav: source_not_found") == 1
    assert shown.index("source_not_found") < shown.index("1 file, 1.3 s of audio")
    assert "; 1 failed" in shown
    assert "aviary: 1 of 2 inputs failed" in shown


@pytest.mark.parametrize(
    "typed", [["transcribe", SAMPLES, "--format", "jsonl"], ["models"]], ids=lambda typed: typed[0]
)
def test_a_reader_that_has_seen_enough_is_no_error(typed):
    with subprocess.Popen(
        command(*typed), env=environment(**DRY), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert all(line.startswith(b"aviary: found 6 inputs") for line in process.stderr)
        assert process.wait(20) == 1


def test_ctrl_c_keeps_what_is_done(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/never.wav"
        typed = command("transcribe", WEEK, url, "--output", tmp_path / "out.json")
        env = environment(**DRY, ALLOW_PRIVATE_URLS="1", DECODE_WORKERS="1")
        with (
            subprocess.Popen(typed, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process,
            silent.accept()[0],
        ):
            time.sleep(1)  # one reader: the first is decoded, and done as soon as its batch has waited
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "aviary: interrupted; the results of 1 of 2 inputs are written\n"
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["text"] == "[dry-run] transcribe of 1.27 s"


def test_the_console_script_is_this_command():
    assert 'aviary = "worker.entrypoints.cli:run_process"' in (ROOT / "pyproject.toml").read_text()
    assert aviary("models").stdout.startswith("parakeet ")


def test_a_manifest_is_answered_line_by_line_and_goes_on_where_it_stopped(tmp_path):
    rows = [{"audio_filepath": WEEK, "speaker": 7}, {"audio_filepath": "none.wav"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    typed = ("manifest", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--timestamps")
    assert aviary(*typed).stdout == f"{tmp_path}/out/in.transcribe.jsonl\n"
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps(rows[1]) + "\n")
    done = aviary(*typed, code=1)
    assert re.fullmatch(
        r"aviary: 2 lines, 1 of them from an earlier run, in [\d.]+ s\n"
        r"aviary: 1 lines failed \(source_not_found 1\); --retry-failed processes them again\n",
        done.stderr,
    )
    first, second = map(json.loads, (tmp_path / "out" / "in.transcribe.jsonl").read_text().splitlines())
    assert [word["word"] for word in first.pop("timestamps")["word"]] == ["[dry-run]", "transcribe", "of", "1.27", "s"]
    assert first == {**rows[0], "pred_text": "[dry-run] transcribe of 1.27 s"}
    assert second["error"]["code"] == "source_not_found"


def test_a_manifest_takes_the_options_of_its_task(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"audio_filepath": WEEK}))
    for pooling, axes in (("none", 2), ("mean", 1)):
        aviary(
            "manifest", tmp_path / "in.jsonl", "--output", tmp_path / pooling, "--task", "embed", "--pooling", pooling
        )
        (vector,) = (tmp_path / pooling).rglob("*.npy")
        assert np.load(vector).ndim == axes


def test_a_manifest_by_a_server_that_is_not_there(capsys, monkeypatch, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"audio_filepath": WEEK}))
    monkeypatch.setattr("worker.manifest.askers.RETRIES", 0)
    assert "127.0.0.1:9" in refused(
        capsys, "manifest", tmp_path / "in.jsonl", "--output", tmp_path, "--server", "http://127.0.0.1:9"
    )
