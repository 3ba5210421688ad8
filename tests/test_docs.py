"""The README says what the code does: every setting with its default, every model, every error code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker import errors
from worker.catalog import MODELS
from worker.config import Settings

README = (Path(__file__).parent.parent / "README.md").read_text()
SET_BY_RUNPOD = {"runpod_webhook_get_job", "runpod_endpoint_id"}


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - SET_BY_RUNPOD))
def test_every_setting_stands_in_the_table_with_its_default_and_meaning(name):
    row = re.search(rf"^\| `{name.upper()}` \| (.+?) \| (.+) \|$", README, re.MULTILINE)
    assert row, f"{name.upper()} is missing"
    field = Settings.model_fields[name]
    assert row[2] == field.description
    if field.default_factory is None:
        default = field.default
        shown = (
            "unset"
            if default is None
            else f"`{int(default) if isinstance(default, bool) else format(default, 'g')}`"
            if isinstance(default, float | bool)
            else f"`{default}`"
        )
        assert row[1] == shown
    elif field.default_factory is tuple:
        assert row[1] == "unset"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_every_model_stands_in_the_table(model):
    alias = (model.aliases or (model.id,))[0]
    row = rf"^\| `{re.escape(alias)}` \| `{re.escape(model.id)}` \| .+ \| {re.escape(model.licence)} \|$"
    assert re.search(row, README, re.MULTILINE)


def every(cls: type) -> set[type]:
    return {cls}.union(*(every(sub) for sub in cls.__subclasses__()))


def test_every_error_code_a_user_may_see_stands_in_the_table():
    internal = {errors.Cancelled, errors.Busy, errors.FfmpegMissing, errors.ConfigError}
    for error in every(errors.AviaryError) - internal:
        assert f"`{error.code}`" in README, error
