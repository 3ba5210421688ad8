"""An evaluation's answer → one HTML page: the summary, then every file, the worst first, its words beside the label's.

The page is whole in itself: no script, and nothing fetched, which it also tells the browser. It follows the reader's
light or
dark scheme; what colour says, a sign says too, and words that only a screen reader speaks. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from worker.evaluation import metrics

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1b1f; --faint: #5b5b66; --line: #d5d5dd;
  --sub: #7a4a00; --sub-ground: #fdf0d5; --ins: #0b5394; --ins-ground: #e1effb; --del: #9c1c1c; --del-ground: #fbe4e4; }
@media (prefers-color-scheme: dark) { :root { --ground: #16161a; --ink: #ececf1; --faint: #a5a5b2; --line: #3a3a44;
  --sub: #ffd28a; --sub-ground: #42310f; --ins: #a9d3ff; --ins-ground: #12304d; --del: #ffb3b3; --del-ground: #4d1717;
  } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; } dt { color: var(--faint); } dd { margin: 0; font-weight: 600; }
.wide { position: relative; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: var(--faint); padding-bottom:
.5rem; } th, td { text-align: start; vertical-align: top; padding: .4rem .6rem; border-top: 1px solid var(--line); }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 8rem; }
td.text { width: 60%; min-width: 16rem; overflow-wrap: anywhere; }
td p { margin: 0; }
th.number, td.number { text-align: end; font-variant-numeric: tabular-nums; white-space: nowrap; }
.sub, ins, del { text-decoration: none; border-radius: .2rem; padding: 0 .25rem; }
.sub { color: var(--sub); background: var(--sub-ground); }
ins { color: var(--ins); background: var(--ins-ground); } del { color: var(--del); background: var(--del-ground); }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
"""


def to_html(answer: Json, title: str = "Evaluation") -> str:
    """The page, of an answer of `evaluate` or one read back from its JSON."""
    summary, details = answer["summary"], answer["details"]
    rows = "\n".join(_row(detail, summary["normalizer"]) for detail in sorted(details, key=_badness))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<dl>
{_summary(summary)}
</dl>
<h2 id="files">Files</h2>
<p>{_substituted("label", "what was heard")} {_deleted("left out")} {_inserted("added")}</p>
<div class="wide" role="region" aria-labelledby="files" tabindex="0">
<table>
<caption>The worst first. Texts are shown as they are compared ({escape(summary["normalizer"])}).</caption>
<thead>
<tr><th scope="col">File</th><th scope="col" class="number">WER</th><th scope="col" class="number">CER</th>\
<th scope="col" class="number">Errors</th><th scope="col" class="number">Words</th><th scope="col">Text</th></tr>
</thead>
<tbody>
{rows}
</tbody>
</table>
</div>
{_left_over("Audio without a label", summary["unlabelled"])}
{_left_over("Labels without audio", summary["missing_audio"])}
</main>
</body>
</html>
"""


def _badness(detail: Json) -> tuple[bool, float, int, str]:
    """Sorts what failed before what was misheard, and that by its error rate, then by its number of errors."""
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
    failed = f"<p>Failed: {escape(detail['error']['message'])}</p>" if "error" in detail else ""
    return (
        f'<tr><th scope="row">{escape(detail["file"])}</th>{numbers}'
        f'<td class="text">{failed}<div dir="auto"{language}>{_aligned(detail, normalizer)}</div></td></tr>'
    )


def _aligned(detail: Json, normalizer: str) -> str:
    reference, hypothesis = (metrics.normalize(detail[key], normalizer, detail["language"]) for key in ("gt", "pred"))
    shown = []
    for chunk in metrics.align(reference, hypothesis):
        given, heard = " ".join(chunk.reference), " ".join(chunk.hypothesis)
        if chunk.kind == "equal":
            shown.append(escape(given))
        elif chunk.kind == "substitute":
            shown.append(_substituted(given, heard))
        else:
            shown.append(_deleted(given) if chunk.kind == "delete" else _inserted(heard))
    return " ".join(shown)


def _substituted(given: str, heard: str) -> str:
    return (
        f'<span class="sub">{_spoken("substitution:")}{escape(given)}{_sign(" → ")}{_spoken("heard as")}'
        f"{escape(heard)}{_spoken('.')}</span>"
    )


def _deleted(given: str) -> str:
    return f"<del>{_spoken('deletion:')}{_sign('−')}{escape(given)}{_spoken('.')}</del>"


def _inserted(heard: str) -> str:
    return f"<ins>{_spoken('insertion:')}{_sign('+')}{escape(heard)}{_spoken('.')}</ins>"


def _spoken(words: str) -> str:
    """Words for a screen reader. They have a direction of their own, so that they do not decide the text's."""
    return f'<span class="spoken" lang="en" dir="ltr"> {words} </span>'


def _sign(sign: str) -> str:
    return f'<span aria-hidden="true">{sign}</span>'


def _left_over(heading: str, names: Iterable[str]) -> str:
    listed = "\n".join(f"<li>{escape(name)}</li>" for name in names)
    return f"<h2>{heading}</h2>\n<ul>\n{listed}\n</ul>" if listed else ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"
