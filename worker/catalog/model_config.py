"""The model_config.yaml of a .nemo file as plain values, read within bounds because its author may be hostile.

    bytes ── measure ── parse ──▶ ModelConfig ── config["encoder"] ──▶ a section without references
                                              └─ peek("a", "b")    ──▶ a value as it stands in the file

The bounds hold for the values after YAML aliases and references are expanded: a few lines of either can stand for
billions of values. A reference is OmegaConf's `${a.b}` or, relative to its place, `${.b}`. Only a reference that is a
whole value and points into the same file is resolved. All other text with `${` is refused: OmegaConf's resolvers read
environment variables and call functions, and text around a reference can compose such a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from worker.errors import ModelUnavailable

MAX_VALUES = 200_000  # four vocabularies of 16,384 tokens take a third of it
MAX_LEVELS = 32
MAX_HOPS = 16  # for a reference to a reference
MAX_DIGITS = 100
_REFERENCE = re.compile(r"\$\{(\.*)([\w-]+(?:\.[\w-]+|\[[\w-]+\])*)\}")
_VERSION = re.compile(r"\d+\.\d[\w.+-]{0,30}")
# A float as OmegaConf reads it. PyYAML reads 1e-5 as text.
_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?"
    r"|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)


class ModelConfig:
    """A configuration file's mapping of sections. The values are dict, list, str, int, float, bool and None.

    Each method raises ModelUnavailable, with the reason, if the file exceeds a bound or holds something else.
    """

    def __init__(self, content: bytes, source: str) -> None:
        """Parse YAML text. `source` names the file in messages."""
        self._source = source
        self._left = MAX_VALUES
        self._sections: dict[Any, Any] = {}
        tree = self._parsed(content)
        if not isinstance(tree, dict):
            raise self.refusal("is not a mapping")
        self._tree = self._plain(tree)
        # NeMo reads the section `model` of a whole training configuration. References count from the file's root.
        nested = isinstance(self._tree.get("model"), dict)
        self._sections = self._tree["model"] if nested else self._tree
        self._path: tuple[Any, ...] = ("model",) if nested else ()

    def __contains__(self, section: str) -> bool:
        return section in self._sections

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __getitem__(self, section: str) -> Any:
        """Return a section, with every reference replaced by the value that it points at."""
        return self._resolved(self._sections[section], (*self._path, section), 0)

    def peek(self, *keys: str) -> Any:
        """Return the value at a path of keys as the file writes it, references unresolved; None if there is none."""
        value: Any = self._sections
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def nemo_version(self) -> str | None:
        """The version of NeMo that saved the file, or None if the file does not name one."""
        version = str(self._sections.get("nemo_version"))
        return version if _VERSION.fullmatch(version) else None

    def refusal(self, reason: str) -> ModelUnavailable:
        """Return the error that says why the file is refused. `reason` starts with a verb."""
        saved = f", which NeMo {self.nemo_version} saved," if self.nemo_version else ""
        return ModelUnavailable(
            f"{self._source}{saved} {reason}. Aviary does not load it. Use a checkpoint of Parakeet or Canary as "
            "NeMo's save_to() writes it."
        )

    def _parsed(self, content: bytes) -> Any:
        import yaml

        loader = _loader(yaml)
        try:
            self._measure(yaml, yaml.parse(content, loader))
            return yaml.load(content, loader)  # noqa: S506  a subclass of the safe loader
        # PyYAML's constructors raise an AttributeError, LookupError or TypeError for a text that does not fit its tag.
        except (
            yaml.YAMLError,
            ValueError,
            OverflowError,
            RecursionError,
            AttributeError,
            LookupError,
            TypeError,
        ) as error:
            raise self.refusal(f"is not valid YAML ({' '.join(str(error).split())[:200]})") from error

    def _measure(self, yaml: Any, events: Iterator[Any]) -> None:
        """Count values and levels by the parser's events, before anything is built. An alias counts as its anchor."""
        known: dict[str, tuple[int, int]] = {}
        stack = [_Open(None)]

        def close(anchor: str | None, values: int, levels: int) -> None:
            if anchor:
                known[anchor] = (values, levels)
            stack[-1].values += values
            stack[-1].levels = max(stack[-1].levels, levels)
            self._check(stack[-1].values, len(stack) - 1 + levels)

        for event in events:
            if isinstance(event, yaml.CollectionStartEvent):
                known.pop(event.anchor, None)
                stack.append(_Open(event.anchor))
                self._check(0, len(stack) - 1)
            elif isinstance(event, yaml.CollectionEndEvent):
                node = stack.pop()
                close(node.anchor, node.values + 1, node.levels + 1)
            elif isinstance(event, yaml.ScalarEvent):
                close(event.anchor, 1, 0)
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in known:
                    raise self.refusal(f"has an alias inside or before its anchor {event.anchor[:80]!r}")
                close(None, *known[event.anchor])

    def _check(self, values: int, levels: int) -> None:
        if values > MAX_VALUES or levels > MAX_LEVELS:
            raise self.refusal(f"has more than {MAX_VALUES} values or {MAX_LEVELS} levels")

    def _plain(self, value: Any) -> Any:
        """Return a copy in which no two values are one object. Values of other types are refused."""
        if isinstance(value, dict):
            if odd := [key for key in value if type(key) not in (str, int, float, bool)]:
                raise self.refusal(f"has a key of the type {type(odd[0]).__name__}")
            return {key: self._plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise self.refusal(f"has a value of the type {type(value).__name__}")

    def _resolved(self, value: Any, path: tuple[Any, ...], hops: int) -> Any:
        """Return the value at a path of keys without references. `hops` is the number of references that led there."""
        self._left -= 1
        self._check(MAX_VALUES - self._left, len(path))
        if isinstance(value, dict):
            return {key: self._resolved(item, (*path, key), hops) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item, (*path, str(index)), hops) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            target = self._target(value, path)
            if hops == MAX_HOPS:
                raise self.refusal(f"has a circle of references at {_dotted(path)}")
            return self._resolved(self._at(target, path), target, hops + 1)
        return value

    def _target(self, text: str, path: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the path that a reference points at."""
        match = _REFERENCE.fullmatch(text)
        if match is None or len(match[1]) > len(path):
            raise self.refusal(f"has {text[:80]!r} at {_dotted(path)}, which is not a reference to a value in the file")
        base = path[: len(path) - len(match[1])] if match[1] else ()
        return (*base, *re.findall(r"[\w-]+", match[2]))

    def _at(self, target: tuple[Any, ...], path: tuple[Any, ...]) -> Any:
        value: Any = self._tree
        for key in target:
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key in map(str, range(len(value))):
                value = value[int(key)]
            else:
                raise self.refusal(f"refers at {_dotted(path)} to {_dotted(target)}, which does not exist")
        return value


@dataclass
class _Open:
    """A collection whose end the parser has not reached: its anchor, and the values and levels in it so far."""

    anchor: str | None
    values: int = 0
    levels: int = 0


def _loader(yaml: Any) -> Any:
    """Return a safe loader that reads plain text as OmegaConf does: 1e-5 is a float, a date is text, a path too."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def number(construct: Any) -> Any:
        """Bound the digits: the time to convert them grows with their square."""

        def bounded(loader: Any, node: Any) -> Any:
            if len(node.value) > MAX_DIGITS:
                raise yaml.constructor.ConstructorError(None, None, "a number is too long", node.start_mark)
            return construct(loader, node)

        return bounded

    prefix = "tag:yaml.org,2002:"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{prefix}float", f"{prefix}timestamp")]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(f"{prefix}float", _FLOAT, list("-+.0123456789"))
    Loader.add_constructor(f"{prefix}int", number(yaml.SafeLoader.construct_yaml_int))
    Loader.add_constructor(f"{prefix}float", number(yaml.SafeLoader.construct_yaml_float))
    Loader.add_multi_constructor(
        f"{prefix}python/object/apply:pathlib.",
        lambda loader, _, node: "/".join(map(str, loader.construct_sequence(node))),
    )
    return Loader


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))[:80]
