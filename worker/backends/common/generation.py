"""Shared parts of the models that generate text token by token.

    settings(options, longest=…)    the arguments of transformers' `generate`
    Watch(pieces, …)                its stopping criterion: cancels rows, and streams the text of each row
    hypothesis(ids, ends, read)     the ids of a finished row → Hypothesis
    length_warning(reason, …)       the warning of a text that the limit on new tokens cut off
    split_thinking(text)            an answer, and the thoughts before it
    audio_turn(messages)            the turn of a chat that the audio belongs to

torch is imported inside, because the module is also imported where torch is not installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from worker.types import FinishReason, Message, Options, Piece


@dataclasses.dataclass(frozen=True, slots=True)
class Hypothesis:
    """The generated text of one row.

    `tokens` are its ids without the end token. `reason` is "stop" if the model ended the text and "length" if the limit
    on new tokens did.
    """

    text: str
    tokens: list[int]
    reason: FinishReason


class Watch:
    """A stopping criterion for `generate` that cancels and streams each row separately.

    It ends the row of a canceled piece, and passes new text to each piece's `on_text`. Row i of the ids belongs to
    `pieces[i]` and starts with `prompt_length` prompt ids. `read` decodes a row's new ids into text.
    """

    def __init__(self, pieces: Sequence[Piece], prompt_length: int, read: Callable[[list[int]], str]) -> None:
        self._pieces, self._start, self._read = pieces, prompt_length, read
        self._sent = [""] * len(pieces)

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Stream the new text, and return the rows to end: a bool tensor of shape (rows,).

        `ids` has shape (rows, tokens).
        """
        import torch

        for row, piece in enumerate(self._pieces):
            if piece.on_text is not None:
                text = self._read(ids[row, self._start :].tolist())
                if not text.endswith("\ufffd"):  # an incomplete character: the next token completes it
                    self._send(row, piece.on_text, text)
        return torch.tensor([piece.cancelled() for piece in self._pieces], device=ids.device)

    def finish(self, texts: Sequence[str]) -> None:
        """Stream the end of each row's text, once the texts are final."""
        for row, (piece, text) in enumerate(zip(self._pieces, texts, strict=True)):
            if piece.on_text is not None:
                self._send(row, piece.on_text, text)

    def _send(self, row: int, on_text: Callable[[str], None], text: str) -> None:
        sent = self._sent[row]
        if text.startswith(sent) and len(text) > len(sent):
            self._sent[row] = text
            on_text(text[len(sent) :])


def settings(options: Options, *, longest: int) -> dict[str, Any]:
    """Return the arguments of `generate`.

    Generation is greedy unless the options set a temperature. It ends after `options.max_new_tokens` tokens, or after
    `longest` tokens by default.
    """
    sampling = (
        {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p or 1.0, "top_k": 0}
        if options.temperature
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    return {"max_new_tokens": options.max_new_tokens or longest, "num_beams": 1, **sampling}


def hypothesis(ids: Sequence[int], ends: Sequence[int], read: Callable[[list[int]], str]) -> Hypothesis:
    """Return a row's new ids, up to the first of the end tokens `ends`, as a hypothesis. `read` decodes ids."""
    tokens = list(ids)
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[:stop]
    return Hypothesis(read(kept), kept, "length" if stop is None else "stop")


def length_warning(reason: FinishReason, options: Options, limit: int) -> str | None:
    """Return the warning of a text that ended at `limit` new tokens, or None if the model ended the text."""
    if reason == "stop":
        return None
    if options.max_new_tokens == limit:
        return f"The text is cut off at max_new_tokens ({limit}). Raise max_new_tokens, or leave it out."
    return f"The text is cut off at {limit} new tokens, the limit of the model. Split the audio into shorter parts."


def split_thinking(text: str) -> tuple[str, str | None]:
    """Return the answer, and the thoughts that a thinking model wrote before it (None if it wrote none).

    Thoughts that were cut off leave an empty answer.
    """
    if "<think>" not in text:
        return text.strip(), None
    before, _, rest = text.partition("<think>")
    thoughts, _, answer = rest.partition("</think>")
    return f"{before}{answer}".strip(), thoughts.strip()


def audio_turn(messages: Sequence[Message]) -> int:
    """Return the place of the message that the audio belongs to: by default, the user's first one."""
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    return next((place for place in users if messages[place].audio), users[0])
