"""What surrounds each step of Whisper's decoder while transformers' `generate` runs.

    rows that ended are left out ──▶ decoder ──▶ logits ──▶ forbidden tokens ──▶ log probabilities, noise ──▶ token
                                                                                         loops end a row ◀──────┘

torch is imported inside, because the module is also imported where torch is not installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

LOOP_TOKENS = 64  # the end of a text that has no other tokens than those of a loop
LOOP_PERIOD = 12  # tokens, the longest that repeat
SKIP_EVERY = 8  # steps: to look at which rows ended makes a GPU wait
KEPT = 0.75  # of the rows: to leave out fewer would cost more, in copies of the cache, than it saves


@dataclasses.dataclass(frozen=True, slots=True)
class Ids:
    """The token ids that have a meaning: ids below `end` are text, ids from `first_time` on are times.

    The model must not write `forbidden` ids, nor `forbidden_first` ids as the first of a text.
    """

    start: int
    end: int
    first_time: int
    forbidden: tuple[int, ...] = ()
    forbidden_first: tuple[int, ...] = ()

    @property
    def no_speech(self) -> int:
        """Return the id whose probability, next to the start token, is that of no speech."""
        return self.first_time - 2


class Loops:
    """A stopping criterion that ends a row whose last LOOP_TOKENS ids repeat at most LOOP_PERIOD ids.

    Time tokens, the ids from `first_time` on, count as equal. A row ends at the same id in each batch.
    """

    def __init__(self, first_time: int) -> None:
        self._first_time = first_time

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return the rows to end: a bool tensor of shape (rows,). `ids` has shape (rows, tokens)."""
        import torch

        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if ids.shape[1] >= LOOP_TOKENS and ids.shape[1] % 8 == 0:
            tail = ids[:, -LOOP_TOKENS:].clamp(max=self._first_time)
            for period in range(1, LOOP_PERIOD + 1):
                ended |= (tail[:, period:] == tail[:, :-period]).all(dim=1)
        return ended


class Scores:
    """A logits processor that records the log probabilities of the tokens, and samples if there are temperatures.

    It runs after the rules that forbid tokens, as in OpenAI's decoder. `watch` forbids the tokens of `ids`, because
    transformers' own processors search the whole vocabulary for them at each step.

    Adding Gumbel noise to the scores and taking the best token is the same as sampling, and allows for a temperature
    and a generator of random numbers for each row. `seeds` are theirs.
    """

    def __init__(self, ids: Ids, temperatures: Sequence[float], seeds: Sequence[int]) -> None:
        self._ids = ids
        self._temperatures = [[temperature] for temperature in temperatures if temperature]
        self._seeds = seeds
        self._generators: list[Any] = []
        self._steps: list[Any] = []  # of shape (rows,) each
        self._scores: Any = None
        self._first_logits: Any = None
        self._no_speech_probs: Any = None

    @contextlib.contextmanager
    def watch(self, model: Any) -> Iterator[None]:
        """Record the logits of the prompt, and forbid tokens, while `generate` runs."""

        def forbid(_module: Any, _inputs: Any, logits: Any) -> Any:
            last = logits[:, -1:]  # `generate` uses no others
            if self._first_logits is None:
                self._first_logits, last = logits, last.clone()
                last[..., list(self._ids.forbidden_first)] = -math.inf
            last[..., forbidden] = -math.inf
            return last

        forbidden = list(self._ids.forbidden)
        hook = model.proj_out.register_forward_hook(forbid)
        try:
            yield
        finally:
            hook.remove()

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Return the scores to take the best token of, of shape (rows, vocabulary). `ids` has shape (rows, tokens)."""
        if self._scores is None:
            at_start = self._first_logits[:, ids[0].tolist().index(self._ids.start)]
            self._no_speech_probs = at_start.float().softmax(dim=-1)[:, self._ids.no_speech]
            self._first_logits = ()  # the memory of a long prompt's logits
        else:
            self._record(ids)
        self._scores = scores
        return scores / scores.new_tensor(self._temperatures) + self._noise(scores) if self._temperatures else scores

    def logprobs(self, ids: Any) -> Any:
        """Return the log probabilities of the new tokens of `ids`, of shape (rows, new tokens)."""
        import torch

        self._record(ids)
        return torch.stack(self._steps, dim=1)

    def no_speech_probs(self) -> list[float]:
        """Return the probability of no speech of each row."""
        return list(self._no_speech_probs.tolist())

    def _record(self, ids: Any) -> None:
        import torch

        self._steps.append(-torch.nn.functional.cross_entropy(self._scores, ids[:, -1], reduction="none"))

    def _noise(self, scores: Any) -> Any:
        import torch

        self._generators = self._generators or [torch.Generator().manual_seed(seed) for seed in self._seeds]
        uniform = torch.stack([torch.rand(scores.shape[1], generator=generator) for generator in self._generators])
        return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log().to(scores.device)


@contextlib.contextmanager
def skip_ended(model: Any, end: int) -> Iterator[None]:
    """Run the decoder without the rows that have written the token `end`, while `generate` runs.

    `generate` gets zeros as the logits of these rows, whose tokens it ignores. Their cache is freed.
    """
    import torch

    count, steps = 0, 0
    ended = active = torch.empty(0)

    def select(_module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal count, steps, ended, active
        ids = given["decoder_input_ids"]
        if not steps:
            count, active = len(ids), torch.arange(len(ids), device=ids.device)
            ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        ended |= ids[:, -1] == end
        steps += 1
        if steps % SKIP_EVERY == 0:
            left = (~ended[active]).nonzero()[:, 0]
            if 0 < len(left) <= len(active) * KEPT:
                given["cache"].batch_select_indices(left)
                active = active[left]
        if len(active) == count:
            return args, given
        names = [name for name in given if name.startswith("decoder_") and given[name] is not None]
        return args, given | {name: given[name][active] for name in names}

    def restore(_module: Any, _args: Any, output: Any) -> None:
        if len(active) < count:
            logits = output.logits.new_zeros(count, *output.logits.shape[1:])
            logits[active] = output.logits
            output.logits = logits

    hooks = [model.register_forward_pre_hook(select, with_kwargs=True), model.register_forward_hook(restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
