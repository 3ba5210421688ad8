"""What every model that writes token by token shares: settings, counting, cancelling at the next token, and streaming.

`Watch` is handed to transformers' `generate` as its only stopping criterion: it ends the rows whose piece was
cancelled and tells each piece's listener what has been written since.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from worker.types import Options, Piece


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """What a row came to. tokens: ids without the end token; reason: whether the model ended it or the limit did."""

    text: str
    tokens: list[int]
    reason: Literal["stop", "length"]


class Watch:
    """A stopping criterion over rows whose prompts are `prompt_length` ids long. `read` makes text of a row's new
    ids."""

    def __init__(self, pieces: Sequence[Piece], prompt_length: int, read: Callable[[list[int]], str]) -> None:
        self._pieces, self._start, self._read = pieces, prompt_length, read
        self._told = [""] * len(pieces)

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        for row, piece in enumerate(self._pieces):
            if piece.on_text is not None:
                text = self._read(ids[row, self._start :].tolist())
                if not text.endswith("\ufffd"):  # half a character: wait for the rest
                    self._tell(row, piece.on_text, text)
        return torch.tensor([piece.cancelled() for piece in self._pieces], device=ids.device)

    def finish(self, texts: Sequence[str]) -> None:
        """Tells what the last tokens added, once the texts are final."""
        for row, (piece, text) in enumerate(zip(self._pieces, texts, strict=True)):
            if piece.on_text is not None:
                self._tell(row, piece.on_text, text)

    def _tell(self, row: int, listener: Callable[[str], None], text: str) -> None:
        told = self._told[row]
        if text.startswith(told) and len(text) > len(told):
            self._told[row] = text
            listener(text[len(told) :])


def settings(options: Options, *, longest: int) -> dict[str, Any]:
    """`generate`'s arguments: greedy unless a temperature is given, at most `longest` new tokens unless told
    otherwise."""
    sampling = (
        {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p or 1.0, "top_k": 0}
        if options.temperature
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    return {"max_new_tokens": options.max_new_tokens or longest, "num_beams": 1, **sampling}


def written(ids: Sequence[int], ends: Sequence[int], read: Callable[[list[int]], str]) -> Written:
    """A row's new ids, up to the first of the end tokens, as text."""
    tokens = list(ids)
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[:stop]
    return Written(read(kept), kept, "length" if stop is None else "stop")


def split_thinking(text: str) -> tuple[str, str | None]:
    """The answer, and the thoughts a thinking model wrote before it; thoughts that were cut off leave no answer."""
    if "<think>" not in text:
        return text.strip(), None
    before, _, rest = text.partition("<think>")
    thoughts, _, answer = rest.partition("</think>")
    return f"{before}{answer}".strip(), thoughts.strip()
