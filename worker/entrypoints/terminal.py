"""An answer of the handler as a person reads it at a terminal: what `python handler.py` prints."""

from __future__ import annotations

from typing import Any


def format_answer(answer: Any) -> str:
    """Return the models' words, times, scores or errors of an answer, one line per input."""
    if not isinstance(answer, dict):  # the text of an OpenAI route
        return f"\n{answer}\n"
    lines = [f"\n{answer.get('model', '')}"]
    for result in answer.get("results", []):
        lines += _result(result)
    lines += [f"  {name}: {value}" for name, value in answer.get("summary", {}).items()]
    if "timing" in answer:
        stages = [f"{name.removesuffix('_sec')} {seconds:.2f} s" for name, seconds in answer["timing"].items()]
        lines.append("  " + ", ".join(stages))
    if "error" in answer:
        lines.append(f"  error: {answer['error']}")
    return "\n".join(lines) + "\n"


def _result(result: dict[str, Any]) -> list[str]:
    name = result["id"] if result["id"] is not None else f"input {result['index']}"
    if "error" in result:
        return [f"  {name}: {result['error']['code']}: {result['error']['message']}"]
    if "sim_score" in result:
        return [f"  {name}: {result['sim_score']:.3f}"]
    text = result.get("text", result.get("caption", f"embedding of shape {result.get('shape')}"))
    lines = [f"  {name} ({result['duration_sec']:.2f} s): {text}"]
    words = result.get("timestamps", {}).get("word", [])
    if words:
        lines.append("      " + " ".join(f"{w['word']}[{w['start']:.2f}-{w['end']:.2f}]" for w in words))
    return lines
