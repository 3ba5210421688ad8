"""Keywords for NeMo's models: NeMo's boosting trees, followed token by token for each row of a batch.

    Trees.of(keywords, …) ── tokens of each keyword ──▶ Tree ── state ──▶ what each label gains, and its next state
    Follower(rows) ── gains of all rows ──▶ decoder ── the labels that it chose ──▶ advance

A decoder adds the gains to the scores of the labels wherever the model itself found a token: a keyword never makes a
token out of a blank, or out of the end of the text. Rows without keywords gain nothing, so a batch may mix both.

A keyword is spelled with the model's tokenizer, or in lower case if the tokenizer lacks its capital letters. A keyword
that the tokenizer cannot spell is left out, because the model cannot write it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from worker.types import Options

log = logging.getLogger(__name__)

DEFAULT_WEIGHT = 1.0
TREES = 64  # in memory, for each model: the trees of the lists that were used last
# The growth of the gain with each further token of a keyword. NeMo recommends 2 for CTC and transducers, 1 for Canary.
TRANSDUCER_SCALING, CANARY_SCALING = 2.0, 1.0
Spell = Callable[[str], list[int] | None]


class Gains(NamedTuple):
    """What the labels gain in a state of a tree: `labels` gain `values`, and all others `rest`.

    `following` has the next state of each of `labels`. The next state of all others is 0, the tree's root.
    """

    labels: Any
    values: Any
    rest: float
    following: dict[int, int]


class Tree:
    """NeMo's boosting tree of one list of keywords."""

    def __init__(self, ids: Sequence[list[int]], vocabulary: int, scaling: float) -> None:
        from nemo.collections.asr.parts.context_biasing.boosting_graph_batched import GPUBoostingTreeModel
        from nemo.collections.asr.parts.context_biasing.context_graph_universal import ContextGraph

        graph = ContextGraph(context_score=1.0, depth_scaling=scaling)
        graph.build(
            token_ids=[list(one) for one in ids],
            scores=[0.0] * len(ids),
            phrases=[str(one) for one in ids],
            uniform_weights=False,
        )
        self.model: Any = GPUBoostingTreeModel.from_context_graph(
            graph, vocab_size=vocabulary, use_triton=False, uniform_weights=False
        )
        self._gains: dict[int, Gains] = {}

    def gains(self, state: int) -> Gains:
        """Return what the labels gain in a state. The root is state 0."""
        if state not in self._gains:
            import torch

            with torch.inference_mode():
                scores, states = (table[0] for table in self.model.advance(torch.tensor([state])))
            labels = states.nonzero()[:, 0]
            others = (states == 0).nonzero()[:, 0]
            rest = float(scores[others[0]]) if len(others) else 0.0
            following = dict(zip(labels.tolist(), states[labels].tolist(), strict=True))
            self._gains[state] = Gains(labels, scores[labels], rest, following)
        return self._gains[state]


class Trees:
    """The trees of a model, of which the last `TREES` that were used are kept."""

    def __init__(self, vocabulary: int, scaling: float) -> None:
        self._vocabulary, self._scaling = vocabulary, scaling
        self._kept: OrderedDict[tuple[object, tuple[str, ...]], Tree | None] = OrderedDict()

    def of(self, keywords: tuple[str, ...], spell: Spell, language: str | None = None) -> Tree | None:
        """Return the tree of the keywords; None if there are none, or if the tokenizer can spell none of them.

        `spell` returns the ids of a text, and may depend on the `language` only.
        """
        if not keywords:
            return None
        key = (language, keywords)
        if key not in self._kept:
            ids = {keyword: spell(keyword) or spell(keyword.lower()) for keyword in keywords}
            if missing := [keyword for keyword, own in ids.items() if not own]:
                log.info("%d of %d keywords have letters that the model cannot write", len(missing), len(keywords))
            spelled = [own for own in ids.values() if own]
            self._kept[key] = Tree(spelled, self._vocabulary, self._scaling) if spelled else None
            if len(self._kept) > TREES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class Row(NamedTuple):
    """The keywords of one row of a batch: their tree, and how strongly the decoder prefers them."""

    tree: Tree
    weight: float


def row(trees: Trees, options: Options, spell: Spell, language: str | None = None) -> Row | None:
    """Return the keywords of a request as those of a row, or None if the model cannot write any, or there are none."""
    tree = trees.of(options.keywords, spell, language)
    weight = DEFAULT_WEIGHT if options.keyword_weight is None else options.keyword_weight
    return None if tree is None else Row(tree, weight)


class Follower:
    """Where each row of a batch is in its tree.

    `rows` are the indices of the rows with keywords, and `gains`, of shape (rows with keywords, vocabulary), is what
    their labels gain at present.
    """

    def __init__(self, batch: Sequence[Row | None], vocabulary: int, device: Any = "cpu") -> None:
        import torch

        self.rows = [index for index, own in enumerate(batch) if own is not None]
        self._own = [own for own in batch if own is not None]
        self._place = {index: place for place, index in enumerate(self.rows)}
        self._states = [0] * len(self.rows)
        self.gains = torch.zeros(len(self.rows), vocabulary, device=device)
        for place in range(len(self.rows)):
            self._fill(place)

    def gains_of(self, index: int) -> Any:
        """Return the gains of the labels of one row with keywords."""
        return self.gains[self._place[index]]

    def advance(self, labels: Mapping[int, int]) -> None:
        """Follow rows over the label that the decoder chose for each. Rows without keywords are ignored."""
        for index in self._place.keys() & labels.keys():
            place = self._place[index]
            before = self._states[place]
            self._states[place] = self._own[place].tree.gains(before).following.get(labels[index], 0)
            if self._states[place] != before:
                self._fill(place)

    def prefer(self, scores: Any, plain: Any) -> Any:
        """Return the label of each row with the keywords' gains: the best of `scores`, of shape (rows, vocabulary).

        `plain` has the labels without the gains, of shape (rows,). Other rows keep theirs.
        """
        chosen = plain.clone()
        chosen[self.rows] = (scores[self.rows] + self.gains).argmax(dim=-1)
        return chosen

    def _fill(self, place: int) -> None:
        (tree, weight), gains = self._own[place], self.gains[place]
        found = tree.gains(self._states[place])
        gains.fill_(found.rest * weight)
        gains[found.labels.to(gains.device)] = (found.values * weight).to(gains.device)


@contextlib.contextmanager
def in_decoder(computer: Any, batch: Sequence[Row | None], device: Any) -> Iterator[Any]:
    """Put the trees of a batch into a NeMo decoding computer, and take them out at the end.

    Yield the number of each row's tree, of shape (rows,); -1 is that of a row without keywords.
    """
    import torch

    holder = computer.biasing_multi_model.to(device)
    numbers: dict[Row, int] = {}
    try:
        for own in dict.fromkeys(own for own in batch if own is not None):
            numbers[own] = holder.add_model(own.tree.model.to(device), own.weight)
        yield torch.tensor([-1 if own is None else numbers[own] for own in batch], device=device)
    finally:
        for number in numbers.values():
            holder.remove_model(number)


def speller(model: Any) -> Spell:
    """Return the function that spells a text with the tokenizer or the vocabulary of a Parakeet."""
    if hasattr(model, "tokenizer"):
        tokenizer = model.tokenizer
        return lambda text: spelled(tokenizer.text_to_ids(text), tokenizer)
    labels = model.joint.vocabulary if hasattr(model, "joint") else model.decoder.vocabulary
    numbers = {label: number for number, label in enumerate(labels)}
    return lambda text: [numbers[letter] for letter in text] if all(letter in numbers for letter in text) else None


def spelled(ids: list[int], tokenizer: Any) -> list[int] | None:
    """Return the ids, or None if one of them is not of a letter that the tokenizer knows."""
    names = tokenizer.ids_to_tokens(ids)
    return None if any(name in ("<unk>", "⁇") for name in names) else ids
