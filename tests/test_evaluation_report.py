"""The page: whole in itself, in order, with every label as text and never as markup."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.evaluation import Corpus, Pair, audio_links, count_and_names, metrics, to_html
from worker.evaluation.report import SCRIPT

EVIL = "<script>alert(1)</script> & \"q\" 'q' </td> --> ]]>"


def detail(file: str, gt: str, pred: str, **more) -> dict:
    reference, hypothesis = metrics.normalize(gt, "plain"), metrics.normalize(pred, "plain")
    words, characters = metrics.words(reference, hypothesis), metrics.characters(reference, hypothesis)
    return {
        "file": file,
        "pred": pred,
        "gt": gt,
        "match": int(reference == hypothesis),
        "wer": words.rate,
        "cer": characters.rate,
        "plain_wer": words.rate,
        "plain_cer": characters.rate,
        "substitutions": words.substitutions,
        "insertions": words.insertions,
        "deletions": words.deletions,
        "words": words.reference,
        "language": None,
        **more,
    }


def answer(*details: dict, **summary) -> dict:
    total = {name: sum(one[name] for one in details) for name in ("words", "substitutions", "insertions", "deletions")}
    return {
        "summary": {
            "count": len(details),
            "tp": 1,
            "fp": 1,
            "fn": 1,
            "precision": 0.5,
            "recall": 0.5,
            "f1": 0.5,
            "failed": 0,
            "wer": 0.125,
            "cer": 0.0625,
            "plain_wer": 0.25,
            "plain_cer": 0.1875,
            **total,
            "characters": 100,
            "unlabelled": [],
            "missing_audio": [],
            "model": "m",
            "match_mode": "exact",
            "normalizer": "plain",
            "audio_sec": 60.0,
            "total_sec": 6.0,
            "rtfx": 10.0,
            **summary,
        },
        "details": list(details),
    }


class Page(HTMLParser):
    """A page's tags, checked to be closed in order, its attributes, the files' rows, and what is seen of the text."""

    VOID = ("meta", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.marks = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes).get("class")))
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any(name == "spoken" for _, name in self.open):
            return
        if self.rows and any(tag == "tr" for tag, _ in self.open):
            self.rows[-1] += data
        if any(tag in ("ins", "del") or name == "sub" for tag, name in self.open):
            self.marks.append(data)

    @property
    def files(self) -> list[str]:
        return self.rows[1:]


def test_nothing_is_fetched_and_only_the_script_of_the_page_runs():
    html = to_html(answer(detail("a.wav", "x", "y")))
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "onclick", "onload", "style"}
    assert not re.search(r"https?://|url\(|@import", html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script == SCRIPT.read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(page.attributes)["content"].split("; ")
    assert policy == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src\n 'sha256-{digest}'",
        "media-src file: http: https:",
    ]


@pytest.mark.parametrize(
    "place", ["file", "gt", "pred", "error", "language", "unlabelled", "missing_audio", "model", "title"]
)
def test_markup_is_shown_and_not_obeyed(place):
    plain = detail("a.wav", "x", "y", language="en", error={"message": "broken"})
    summary, title = {}, "T"
    if place in ("file", "gt", "pred", "language"):
        plain[place] = EVIL
    elif place == "error":
        plain["error"] = {"message": EVIL}
    elif place == "title":
        title = EVIL
    else:
        summary[place] = EVIL if place == "model" else [EVIL]
    html = to_html(answer(plain, **summary), title)
    assert html.count("<script") == 1
    assert Page(html).tags.count("td") == 6
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(("gt", "pred"), [("<i>", "<i>"), ("<i>", "x"), ("x", "<i>"), ("<i>", ""), ("", "<i>")])
def test_markup_is_shown_whatever_became_of_the_word(gt, pred):
    html = to_html(answer(detail("a.wav", gt, pred)))
    assert "<i>" not in html
    assert "&lt;i&gt;" in html


def test_failures_then_the_worst_then_the_longest_first():
    page = Page(
        to_html(
            answer(
                detail("good.wav", "a b", "a b"),
                detail("alone.wav", "a", "b"),
                detail("bad.wav", "a b", "c"),
                detail("over.wav", "a", "b c"),
                detail("lost.wav", "a b", "", error={"message": "no such file"}),
            )
        )
    )
    assert [re.match(r"\w+\.wav", row)[0] for row in page.files] == [
        "lost.wav",
        "over.wav",
        "bad.wav",
        "alone.wav",
        "good.wav",
    ]
    assert "Failed: no such file" in page.files[0]
    assert page.files[1].startswith("over.wav200.0%300.0%200.0%21")


def test_each_error_has_a_sign_and_a_spoken_word():
    html = to_html(answer(detail("a.wav", "the cat sat on the mat", "the bat sat oh on mat")))
    page = Page(html)
    assert page.files[0].endswith("the cat → bat sat +oh on −the mat")
    row = html[html.index("<tbody>") :]
    for word in ("substitution:", "transcribed as", "insertion:", "deletion:"):
        assert word in row
    assert ("scope", "row") in page.attributes
    assert {"caption", "h1", "main", "thead"} <= set(page.tags)


def test_the_summary_and_what_was_left_over():
    found = {"unlabelled": ["u.wav"], "missing_audio": ["m.txt"], "failed": 3, "count": 2, "recall": 0.5}
    html = to_html(answer(detail("a.wav", "a b", "a"), **found, normalizer="whisper"))
    for shown in (
        "12.5%",
        "6.2%",
        "25.0%",
        "18.8%",
        "1 in 2 words",
        "1 of 2 (50.0%)",
        "10 times real time",
        "<p>Audio without a label: 1: u.wav</p>",
        "<p>Labels without audio: 1: m.txt</p>",
        "<dd>3</dd>",
    ):
        assert shown in html
    assert "without" not in to_html(answer(detail("a.wav", "a b", "a"), rtfx=None))


def test_the_share_of_matches_stands_below_the_rates():
    html = to_html(answer(detail("a.wav", "Know,", "know"), detail("b.wav", "b", "b"), normalizer="whisper"))
    facts = re.findall(r"<dt>(.*?)</dt>", html)
    assert facts[:5] == [
        "Model",
        "Word error rate (whisper)",
        "Character error rate (whisper)",
        "Word error rate (plain: punctuation counts)",
        "Character error rate (plain)",
    ]
    assert facts.index("Files that match their label (exact)") > facts.index("Files that failed")
    assert "Precision" not in html
    assert "punctuation" not in to_html(answer(detail("a.wav", "a", "a"))), "the plain rates are the rates"


def test_many_files_without_a_label_are_counted_and_five_are_named():
    html = to_html(answer(detail("a.wav", "a", "a"), unlabelled=[f"{i}.wav" for i in range(7)]))
    assert "7: 0.wav, 1.wav, 2.wav, 3.wav, 4.wav, and 2 more</p>" in html
    assert count_and_names(["a"] * 5) == "5: a, a, a, a, a"


def test_each_file_is_linked_from_the_folder_of_the_page(tmp_path):
    corpus = Corpus(
        (
            Pair("a b#.wav", str(tmp_path / "audio" / "a b#.wav"), ""),
            Pair("one", str(tmp_path / "audio" / "long.wav"), "", segment=(3.0, 2.5)),
            Pair("rest", str(tmp_path / "audio" / "long.wav"), "", segment=(3.0, None)),
            Pair("web", "https://host/a.wav?b=1&c=2", ""),
            Pair("bucket", "s3://bucket/a.wav", ""),
        )
    )
    links = audio_links(corpus, tmp_path / "reports")
    assert links == [
        "../audio/a%20b%23.wav",
        "../audio/long.wav#t=3,5.5",
        "../audio/long.wav#t=3",
        "https://host/a.wav?b=1&c=2",
        None,
    ]
    details = [detail(pair.file, "x", "y" if i else "x") for i, pair in enumerate(corpus.pairs)]
    page = Page(to_html(answer(*details), audio=links))
    shown = [value for name, value in page.attributes if name == "href"]
    assert shown == [links[1], links[2], links[3], links[0]], "each beside its file, in the order of the rows"


def test_other_scripts_keep_their_language_and_direction():
    page = Page(to_html(answer(detail("ünï-日本.wav", "مرحبا بكم", "مرحبا", language="ar"))))
    assert page.files[0].startswith("ünï-日本.wav")
    assert ("lang", "ar") in page.attributes
    assert ("dir", "auto") in page.attributes
    assert page.marks[-2:] == ["−", "بكم"]


def test_words_for_screen_readers_do_not_decide_a_texts_direction():
    html = to_html(answer(detail("a.wav", "مرحبا", "بكم")))
    spoken = re.findall(r'<span class="spoken"[^>]*>', html)
    assert spoken
    assert all('dir="ltr"' in tag for tag in spoken)


@given(st.text(st.characters(blacklist_categories=["Cs"])), st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_text_gives_a_page(gt, pred):
    page = Page(to_html(answer(detail("a.wav", gt, pred))))
    assert len(page.files) == 1
    assert page.tags.count("td") == 6


def test_a_dollar_sign_is_text():
    html = to_html(answer(detail("$rows.wav", "$title $1", "$$", language="en")), "$summary")
    for shown in ("<h1>$summary</h1>", "$rows.wav", "$title", "$$"):
        assert shown in html
