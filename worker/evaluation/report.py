"""An evaluation's report as one HTML page: the summary, then each file with its transcript aligned to its label.

The page's frame and style are in `report.html`. Files that failed come first, then those with the highest error rates.

The page stands alone: it has no script and fetches nothing, and its content security policy forbids both. It follows
the reader's light or dark color scheme. Each color has a sign beside it, and words for screen readers. All text is
escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from worker.evaluation import metrics

Json = dict[str, Any]

PAGE = Path(__file__).with_name("report.html")


def to_html(report: Json, title: str = "Evaluation") -> str:
    """Return the page for a report of `evaluate`, which may have been read back from its JSON."""
    summary, details = report["summary"], report["details"]
    legend = (_substitution("label", "transcript"), _deletion("omitted"), _insertion("added"))
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        summary=_summary(summary),
        legend=" ".join(legend),
        normalizer=escape(summary["normalizer"]),
        rows="\n".join(_row(detail, summary["normalizer"]) for detail in sorted(details, key=_sort_key)),
        unlabelled=_list("Audio without a label", summary["unlabelled"]),
        missing_audio=_list("Labels without audio", summary["missing_audio"]),
    )


def _sort_key(detail: Json) -> tuple[bool, float, int, str]:
    """Sort failed files first, then by error rate and number of errors, both descending."""
    return "error" not in detail, -detail["wer"], -_errors(detail), detail["file"]


def _errors(counts: Json) -> int:
    return int(counts["substitutions"] + counts["insertions"] + counts["deletions"])


def _summary(summary: Json) -> str:
    facts = [
        ("Model", summary["model"]),
        ("Word error rate", _percent(summary["wer"])),
        ("Character error rate", _percent(summary["cer"])),
        (
            "Errors",
            f"{_errors(summary)} in {summary['words']} words: {summary['substitutions']} substitutions, "
            f"{summary['deletions']} deletions, {summary['insertions']} insertions",
        ),
        (f"Files that match ({summary['match_mode']})", f"{summary['tp']} of {summary['count']}"),
        ("Precision, recall, F1", ", ".join(_percent(summary[name]) for name in ("precision", "recall", "f1"))),
        ("Files that failed", summary["failed"]),
        (
            "Audio",
            f"{summary['audio_sec']:.1f} s" + (f", {summary['rtfx']:g} times real time" if summary["rtfx"] else ""),
        ),
    ]
    return "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)


def _row(detail: Json, normalizer: str) -> str:
    numbers = "".join(
        f'<td class="number">{value}</td>'
        for value in (_percent(detail["wer"]), _percent(detail["cer"]), _errors(detail), detail["words"])
    )
    language = f' lang="{escape(detail["language"])}"' if detail["language"] else ""
    failure = f"<p>Failed: {escape(detail['error']['message'])}</p>" if "error" in detail else ""
    return (
        f'<tr><th scope="row">{escape(detail["file"])}</th>{numbers}'
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


def _list(heading: str, names: Iterable[str]) -> str:
    """Return a heading with a list of names; "" if there are none."""
    items = "\n".join(f"<li>{escape(name)}</li>" for name in names)
    return f"<h2>{heading}</h2>\n<ul>\n{items}\n</ul>" if items else ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"
