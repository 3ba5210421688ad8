"""An evaluation's report as one HTML page: the summary, then each file with its transcript aligned to its label.

The page's frame and style are in `report.html`. `report.js` adds a filter by text and error rate, and a player to each
link to audio. Files that failed come first, then those with the highest error rates.

The page is one file. Its content security policy allows its own script, which it names by its hash, and the audio that
a reader plays, which is linked and not part of the page. It follows the reader's light or dark color scheme. Each color
has a sign beside it, and words for screen readers. All text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from worker.evaluation import metrics
from worker.evaluation.folders import Corpus, Pair

Json = dict[str, Any]

PAGE = Path(__file__).with_name("report.html")
SCRIPT = Path(__file__).with_name("report.js")
NAMES_SHOWN = 5  # of the files that could not be evaluated


def to_html(report: Json, title: str = "Evaluation", *, audio: Sequence[str | None] = ()) -> str:
    """Return the page for a report of `evaluate`, which may have been read back from its JSON.

    `audio` has the link to the audio of each detail, in order (see `audio_links`). Without links, there are no players.
    """
    summary, details = report["summary"], report["details"]
    legend = (_substitution("label", "transcript"), _deletion("omitted"), _insertion("added"))
    links = audio or [None] * len(details)
    rows = sorted(zip(details, links, strict=True), key=lambda row: _sort_key(row[0]))
    script = SCRIPT.read_text(encoding="utf-8")
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        summary=_summary(summary),
        legend=" ".join(legend),
        normalizer=escape(summary["normalizer"]),
        rows="\n".join(_row(detail, summary["normalizer"], link) for detail, link in rows),
        unlabelled=_paragraph("Audio without a label", summary["unlabelled"]),
        missing_audio=_paragraph("Labels without audio", summary["missing_audio"]),
    )


def audio_links(corpus: Corpus, folder: str | Path) -> list[str | None]:
    """Return a link to the audio of each pair for a page in `folder`; None for audio that a browser cannot open.

    A file is named relative to the folder, so both can be moved together. The link to a segment ends with its times.
    """
    return [_link(pair, os.path.realpath(folder)) for pair in corpus.pairs]


def _link(pair: Pair, folder: str) -> str | None:
    scheme = pair.source.partition("://")[0] if "://" in pair.source else None
    if scheme in ("http", "https"):
        link = pair.source
    elif scheme is None and not pair.source.startswith("data:"):
        path = os.path.relpath(os.path.realpath(pair.source), folder)
        link = quote(path.replace(os.sep, "/").encode("utf-8", "surrogateescape"))
    else:
        return None
    if pair.segment is None:
        return link
    start, length = pair.segment
    return f"{link}#t={start:g}" + ("" if length is None else f",{start + length:g}")


def count_and_names(files: Sequence[str]) -> str:
    """Return how many files there are, and the names of the first ones: "7: a.wav, b.wav, …, and 2 more"."""
    more = len(files) - NAMES_SHOWN
    return f"{len(files)}: {', '.join(files[:NAMES_SHOWN])}" + (f", and {more} more" if more > 0 else "")


def _sort_key(detail: Json) -> tuple[bool, float, int, str]:
    """Sort failed files first, then by error rate and number of errors, both descending."""
    return "error" not in detail, -detail["wer"], -_errors(detail), detail["file"]


def _errors(counts: Json) -> int:
    return int(counts["substitutions"] + counts["insertions"] + counts["deletions"])


def _summary(summary: Json) -> str:
    normalizer = summary["normalizer"]
    facts = [
        ("Model", summary["model"]),
        (f"Word error rate ({normalizer})", _percent(summary["wer"])),
        (f"Character error rate ({normalizer})", _percent(summary["cer"])),
        *(() if normalizer in metrics.PLAIN else _plain(summary)),
        (
            "Errors",
            f"{_errors(summary)} in {summary['words']} words: {summary['substitutions']} substitutions, "
            f"{summary['deletions']} deletions, {summary['insertions']} insertions",
        ),
        ("Files that failed", summary["failed"]),
        (
            f"Files that match their label ({summary['match_mode']})",
            f"{summary['tp']} of {summary['count']} ({_percent(summary['recall'])})",
        ),
        (
            "Audio",
            f"{summary['audio_sec']:.1f} s" + (f", {summary['rtfx']:g} times real time" if summary["rtfx"] else ""),
        ),
    ]
    return "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)


def _plain(summary: Json) -> list[tuple[str, str]]:
    return [
        ("Word error rate (plain: punctuation counts)", _percent(summary["plain_wer"])),
        ("Character error rate (plain)", _percent(summary["plain_cer"])),
    ]


def _row(detail: Json, normalizer: str, link: str | None) -> str:
    rates = [_percent(detail[name]) for name in ("wer", "cer", "plain_wer")]
    numbers = "".join(f'<td class="number">{value}</td>' for value in (*rates, _errors(detail), detail["words"]))
    file = escape(detail["file"])
    searched = escape("\n".join((detail["file"], detail["gt"], detail["pred"])))
    name = f'<a href="{escape(link)}">{file}</a>' if link else file
    language = f' lang="{escape(detail["language"])}"' if detail["language"] else ""
    failure = f"<p>Failed: {escape(detail['error']['message'])}</p>" if "error" in detail else ""
    return (
        f'<tr data-rate="{100 * detail["wer"]:.4f}" data-text="{searched}"><th scope="row">{name}</th>{numbers}'
        f'<td class="text">{failure}<div dir="auto"{language}>{_alignment(detail, normalizer)}</div></td></tr>'
    )


def _alignment(detail: Json, normalizer: str) -> str:
    """Return the label's words with the transcript's errors marked."""
    label, transcript = (metrics.normalize(detail[key], normalizer, detail["language"]) for key in ("gt", "pred"))
    marks = []
    for chunk in metrics.align(label, transcript):
        reference, hypothesis = " ".join(chunk.reference), " ".join(chunk.hypothesis)
        if chunk.kind == "equal":
            marks.append(escape(reference))
        elif chunk.kind == "substitute":
            marks.append(_substitution(reference, hypothesis))
        elif chunk.kind == "delete":
            marks.append(_deletion(reference))
        else:
            marks.append(_insertion(hypothesis))
    return " ".join(marks)


def _substitution(reference: str, hypothesis: str) -> str:
    return (
        f'<span class="sub">{_spoken("substitution:")}{escape(reference)}{_sign(" → ")}{_spoken("transcribed as")}'
        f"{escape(hypothesis)}{_spoken('.')}</span>"
    )


def _deletion(reference: str) -> str:
    return f"<del>{_spoken('deletion:')}{_sign('−')}{escape(reference)}{_spoken('.')}</del>"


def _insertion(hypothesis: str) -> str:
    return f"<ins>{_spoken('insertion:')}{_sign('+')}{escape(hypothesis)}{_spoken('.')}</ins>"


def _spoken(words: str) -> str:
    """Return words for screen readers only. Their own direction keeps them from deciding that of the text around."""
    return f'<span class="spoken" lang="en" dir="ltr"> {words} </span>'


def _sign(sign: str) -> str:
    return f'<span aria-hidden="true">{sign}</span>'


def _paragraph(heading: str, files: Sequence[str]) -> str:
    """Return how many files there are and some of their names; "" if there are none."""
    return f"<p>{heading}: {escape(count_and_names(files))}</p>" if files else ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"
