"""Fields from outside → a pydantic model that accepts nothing unknown, or one clear error.

    validated(model, fields)   a model of the fields, or RequestError for the first mistake

The memory and the time for an error do not grow with the number of mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, ValidationError, model_validator

from worker.errors import RequestError

Fields = Mapping[str, Any]
_Model = TypeVar("_Model", bound=BaseModel)


class FirstError(FailFast):
    """FailFast, with the hash that the metadata of a member of a union must have."""

    __hash__ = object.__hash__


class Strict(BaseModel):
    """A model that accepts no unknown field, and whose errors take time and memory within bounds."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_most_of_the_unknown(cls, values: Any) -> Any:
        """Leave only the first unknown field: pydantic makes an error of each, and there may be a hundred thousand."""
        if not isinstance(values, Mapping) or len(values) <= len(cls.model_fields):
            return values
        unknown = next(name for name in values if name not in cls.model_fields)
        return {name: value for name, value in values.items() if name in cls.model_fields or name == unknown}


def validated(model: type[_Model], fields: Fields) -> _Model:
    """Return the fields as a pydantic model. Raises RequestError that names the field of the first mistake."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        message, param = explain(error, model)
        raise RequestError(message, param=param) from None


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Return the first mistake as (message, field), in words that name the field and what is allowed."""
    first = error.errors()[0]
    place = first["loc"]
    field = ".".join(
        str(part)
        for before, part in zip(("", *place), place, strict=False)
        if part in model.model_fields or isinstance(part, int) or isinstance(before, int)
    ) or ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = f"; the fields are {', '.join(sorted(model.model_fields))}" if len(place) == 1 else ""
        return f"{field} is not a field{known}", field
    if field.startswith("include"):
        return 'include must be "logprobs", or a list with it', "include"
    if field.startswith("timestamps"):
        return "timestamps must be true, false, or a list out of word, segment, char", "timestamps"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{field}: {message}", field
