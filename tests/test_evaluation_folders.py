"""Every layout of labelled audio, and whatever is wrong with one: told, with the file's name, never passed over."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from worker.config import Settings
from worker.errors import RequestError
from worker.evaluation.folders import Corpus, Pair, read_folder, read_manifest
from worker.evaluation.task import _corpus, _EvaluationPayload


def make(folder, files: dict[str, str | bytes]):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def texts(corpus: Corpus) -> dict[str, str]:
    return {pair.file: pair.text for pair in corpus.pairs}


def manifest(folder, *rows: object):
    return (
        make(folder, {"m.jsonl": "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)})
        / "m.jsonl"
    )


# Folders


def test_two_folders_paired_by_stem_and_sorted(tmp_path):
    make(
        tmp_path,
        {
            "audio/test_03.flac": "",
            "audio/sample001.wav": "",
            "audio/clip02.mp3": "",
            "audio/v1.2.M4A": "",
            "labels/sample001.txt": "hello world\n",
            "labels/clip02.txt": "two\r\n  lines \n\n",
            "labels/test_03.txt": "",
            "labels/v1.2.TXT": "dots",
        },
    )
    corpus = read_folder(tmp_path / "audio", tmp_path / "labels")
    assert corpus.pairs == tuple(
        Pair(name, str(tmp_path / "audio" / name), text)
        for name, text in (
            ("clip02.mp3", "two lines"),
            ("sample001.wav", "hello world"),
            ("test_03.flac", ""),
            ("v1.2.M4A", "dots"),
        )
    )
    assert (corpus.unlabelled, corpus.missing_audio) == ((), ())


def test_labels_beside_the_audio_in_subfolders(tmp_path):
    make(
        tmp_path, {"a.wav": "", "a.txt": "top", "x/a.wav": "", "x/a.txt": "in x", "x/y/b.ogg": "", "x/y/b.txt": "in y"}
    )
    assert texts(read_folder(tmp_path)) == {"a.wav": "top", "x/a.wav": "in x", "x/y/b.ogg": "in y"}


def test_librispeech(tmp_path):
    make(
        tmp_path,
        {
            "README.TXT": b"\xff",
            "84/121/84-121.trans.txt": "84-121-0000 GO DO YOU HEAR\n\n84-121-0001\n84-121-0009 LOST\n",
            "84/121/84-121-0000.flac": "",
            "84/121/84-121-0001.flac": "",
            "84/121/84-121-0002.flac": "",
        },
    )
    corpus = read_folder(tmp_path)
    assert texts(corpus) == {"84/121/84-121-0000.flac": "GO DO YOU HEAR", "84/121/84-121-0001.flac": ""}
    assert corpus.unlabelled == ("84/121/84-121-0002.flac",)
    assert corpus.missing_audio == ("84/121/84-121.trans.txt: 84-121-0009", "README.TXT")


def test_what_is_left_over_is_named_and_other_files_are_not_audio(tmp_path):
    make(
        tmp_path,
        {
            "audio/a.wav": "",
            "audio/b.wav": "",
            "audio/notes.md": "",
            "audio/._a.wav": "",
            "audio/.cache/c.wav": "",
            "labels/a.txt": "a",
            "labels/sub/b.txt": "b",
            "labels/notes.txt": "n",
        },
    )
    corpus = read_folder(tmp_path / "audio", tmp_path / "labels")
    assert texts(corpus) == {"a.wav": "a"}
    assert corpus.unlabelled == ("b.wav",)
    assert corpus.missing_audio == ("notes.txt", "sub/b.txt")


def test_two_audio_files_of_one_stem_share_a_label(tmp_path):
    make(tmp_path, {"a.wav": "", "a.mp3": "", "a.txt": "same"})
    assert texts(read_folder(tmp_path)) == {"a.mp3": "same", "a.wav": "same"}


@pytest.mark.parametrize(
    "files", [{"a.txt": "1", "a.TXT": "2"}, {"a.txt": "1", "x.trans.txt": "a 2"}, {"x.trans.txt": "a 1\na 2"}]
)
def test_two_labels_for_one_audio_are_refused(tmp_path, files):
    with pytest.raises(RequestError, match=r"a has two labels, .* and .*") as refused:
        read_folder(make(tmp_path, {"a.wav": "", **files}))
    assert refused.value.param == "gt_dir"


@pytest.mark.parametrize("name", ["b.txt", "b.trans.txt"])
def test_a_label_that_is_not_utf_8_is_named(tmp_path, name):
    with pytest.raises(RequestError, match=rf"{name} is not UTF-8: byte 4 is 0xe9"):
        read_folder(make(tmp_path, {"b.wav": "", name: "b caf\u00e9".encode("latin-1")[1:]}))


def test_unicode_names_in_either_spelling_and_a_byte_order_mark(tmp_path):
    name = "çé日本"
    make(
        tmp_path,
        {
            f"audio/{unicodedata.normalize('NFD', name)}.wav": "",
            f"labels/{unicodedata.normalize('NFC', name)}.txt": b"\xef\xbb\xbf" + "größe 語".encode(),
        },
    )
    corpus = read_folder(tmp_path / "audio", tmp_path / "labels")
    assert [pair.text for pair in corpus.pairs] == ["größe 語"]
    assert corpus.missing_audio == ()


def test_a_name_that_is_not_unicode_can_be_shown(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.wav", "wb"):
        pass
    make(tmp_path, {"a.wav": "", "a.txt": "a"})
    assert read_folder(tmp_path).unlabelled == ("?.wav",)


def test_links_are_followed_and_end_somewhere(tmp_path):
    make(tmp_path, {"far/a.wav": "", "far/a.txt": "a", "here/b.wav": "", "here/b.txt": "b"})
    (tmp_path / "here/far").symlink_to(tmp_path / "far")
    (tmp_path / "here/again").symlink_to(tmp_path / "here")
    assert texts(read_folder(tmp_path / "here")) == {"b.wav": "b", "far/a.wav": "a"}


def test_a_folder_keeps_its_own_name_where_a_link_leads_to_it_too(tmp_path):
    make(tmp_path, {"b/c/a.m4v": "", "b/c/a.txt": "a"})
    (tmp_path / "a").symlink_to(tmp_path / "b/c")
    assert texts(read_folder(tmp_path)) == {"b/c/a.m4v": "a"}


def test_a_label_that_is_no_file_is_refused_at_once(tmp_path):
    make(tmp_path, {"a.wav": ""})
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(RequestError, match=r"not a file: .*a\.txt"):
        read_folder(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match=r"audio_dir is not a folder: .*nowhere") as refused:
        read_folder(tmp_path / "nowhere", tmp_path)
    assert refused.value.param == "audio_dir"
    with pytest.raises(RequestError, match="gt_dir is not a folder"):
        read_folder(tmp_path, tmp_path / "nowhere")


# Manifests


def test_a_manifest_relative_to_itself(tmp_path):
    make(tmp_path, {"clips/a.wav": "", "b.wav": "", "c.wav": ""})
    path = manifest(
        tmp_path,
        {"audio_filepath": "clips/a.wav", "text": "one\u2028two", "duration": 1.0, "lang": "de"},
        "",
        json.dumps({"audio_filepath": str(tmp_path / "b.wav"), "text": "\u2028 drei"}, ensure_ascii=False),
        {"audio_filepath": "c.wav"},
        {"audio_filepath": "gone.wav", "text": "x"},
        {"audio_filepath": "https://host/d.mp3", "text": "vier", "offset": 0, "source_lang": "fr"},
    )
    corpus = read_manifest(path)
    assert corpus.pairs == (
        Pair("clips/a.wav", str(tmp_path / "clips/a.wav"), "one two", "de", segment=(0.0, 1.0)),
        Pair(str(tmp_path / "b.wav"), str(tmp_path / "b.wav"), "drei"),
        Pair("https://host/d.mp3", "https://host/d.mp3", "vier", "fr", segment=(0.0, None)),
    )
    assert (corpus.unlabelled, corpus.missing_audio) == (("c.wav",), ("gone.wav",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([1], "must be an object"),
        ({"text": "x"}, "audio_filepath"),
        ({"audio_filepath": ""}, "audio_filepath"),
        ({"audio_filepath": "b.wav", "text": 5}, "text must be a string"),
        ({"audio_filepath": "b.wav", "text": "x", "lang": 5}, "lang must be a string"),
        ({"audio_filepath": "b.wav", "text": "x", "offset": "1.5"}, "offset must be a number"),
        ({"audio_filepath": "./a.wav", "text": "y"}, "is already in line 1"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(RequestError, match=rf"m\.jsonl, line 2: .*{message}"):
        read_manifest(manifest(make(tmp_path, {"a.wav": ""}), {"audio_filepath": "a.wav", "text": "x"}, row))


def test_a_manifest_that_cannot_be_read(tmp_path):
    with pytest.raises(RequestError, match="not a file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(RequestError, match=r"m\.jsonl is not UTF-8"):
        read_manifest(make(tmp_path, {"m.jsonl": b"\xfe"}) / "m.jsonl")


def test_odd_paths_and_lone_surrogates_do_no_harm(tmp_path):
    corpus = read_manifest(
        manifest(
            make(tmp_path, {"a.wav": ""}),
            {"audio_filepath": "x\0y", "text": ""},
            {"audio_filepath": "n" * 5000, "text": ""},
            {"audio_filepath": "a.wav", "text": "\ud800 b"},
        )
    )
    assert texts(corpus) == {"a.wav": "? b"}
    assert corpus.missing_audio == ("x\0y", "n" * 5000)


# ALLOWED_PATHS, for callers who may not read every file


@pytest.fixture
def tree(tmp_path):
    """A folder that may be read, and one that may not, with a label, audio and a folder in it."""
    inside, outside = make(tmp_path / "inside", {"a.wav": "", "b.wav": ""}), tmp_path / "outside"
    make(outside, {"secret.txt": "secret", "deep/a.txt": "deep secret", "deep/hidden.wav": "", "m.jsonl": "{}"})
    return inside, outside


def read(settings: Settings, **body: Path) -> Corpus:
    return _corpus(_EvaluationPayload(**body), settings)


@pytest.mark.parametrize(
    ("link", "target", "says"),
    [
        ("a.txt", "secret.txt", "inside/a.txt is outside the folders"),
        ("x.trans.txt", "secret.txt", "inside/x.trans.txt is outside the folders"),
        (os.fsdecode(b"sub\xff"), "deep", r"inside/sub\? is outside the folders"),
        ("sub", "", "inside/sub is outside the folders"),
    ],
)
def test_labels_are_not_read_through_links_that_lead_out(tree, link, target, says):
    inside, outside = tree
    (inside / link).symlink_to(outside / target)
    settings = Settings(allowed_paths=(inside,))
    with pytest.raises(RequestError, match=says) as caught:
        read(settings, audio_dir=inside, gt_dir=inside)
    assert caught.value.param == "gt_dir"
    assert "secret" not in caught.value.message
    assert read_folder(inside) is not None, "the owner of the machine may"


def test_a_linked_folder_of_audio_is_not_listed_if_it_leads_out(tree):
    inside, outside = tree
    labels = make(inside / "labels", {"a.txt": "a"})
    audio = make(inside / "audio", {"a.wav": ""})
    (audio / "sub").symlink_to(outside)
    with pytest.raises(RequestError, match="audio/sub is outside") as caught:
        read(Settings(allowed_paths=(inside,)), audio_dir=audio, gt_dir=labels)
    assert caught.value.param == "audio_dir"


def test_links_within_the_allowed_folders_are_followed(tree):
    inside, outside = tree
    (inside / "a.txt").symlink_to(outside / "secret.txt")
    (inside / "sub").symlink_to(outside / "deep")
    (inside / "sub2.wav").symlink_to(inside / "a.wav")
    corpus = read(Settings(allowed_paths=(inside, outside)), audio_dir=inside)
    assert texts(corpus) == {"a.wav": "secret"}
    assert corpus.unlabelled == ("b.wav", "sub/hidden.wav", "sub2.wav")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_label_that_becomes_a_link_after_its_check_is_not_read(tree, monkeypatch):
    inside, outside = tree
    label = make(inside, {"a.txt": "mine"}) / "a.txt"

    def swap(path: str | Path) -> bool:
        if Path(path) == label and not label.is_symlink():
            label.unlink()
            label.symlink_to(outside / "secret.txt")
        return os.path.lexists(path)

    monkeypatch.setattr(os.path, "isfile", swap)
    with pytest.raises(RequestError, match="is outside the folders"):
        read(Settings(allowed_paths=(inside,)), audio_dir=inside)


def test_a_manifest_does_not_tell_what_exists_elsewhere(tree):
    inside, outside = tree
    (inside / "link.jsonl").symlink_to(outside / "m.jsonl")
    settings = Settings(allowed_paths=(inside,))
    with pytest.raises(RequestError, match=r"link\.jsonl is outside"):
        read(settings, manifest=inside / "link.jsonl")
    names = [str(outside / "deep" / "hidden.wav"), str(outside / "nothing.wav"), "b.wav", "nothing.wav"]
    path = manifest(inside, *({"audio_filepath": name, "text": "x"} for name in names))
    corpus = read(settings, manifest=path)
    assert [pair.source for pair in corpus.pairs] == [*names[:2], str(inside / "b.wav")]
    assert corpus.missing_audio == ("nothing.wav",)
    assert len(read_manifest(path).missing_audio) == 2
