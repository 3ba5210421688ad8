"""Settings: names and defaults that users know, and errors that say what is allowed."""
from __future__ import annotations

import pytest

from worker.config import ConfigError, Settings


def test_the_seed_s_defaults():
    made = Settings()
    assert (made.short_max_sec, made.batch_max_items) == (600, 16)
    assert (made.batch_max_total_sec, made.local_attention_after_sec) == (1200, 1440)
    assert made.default_model == "nvidia/parakeet-tdt-0.6b-v3"


@pytest.mark.parametrize(("name", "value", "says"), [
    ("DTYPE", "int8", "bfloat16"), ("DEVICE", "tpu", "cuda"), ("BATCH_MAX_ITEMS", "0", "greater than or equal to 1"),
    ("SHORT_MAX_SEC", "long", "number"), ("LOG_LEVEL", "LOUD", "INFO")])
def test_a_value_that_is_not_allowed_is_an_error_that_names_the_allowed(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as caught:
        Settings()
    assert says in str(caught.value)


def test_which_model_is_the_default(monkeypatch):
    for name in ("PARAKEET_MODEL", "MODEL_NAME", "MODEL"):
        monkeypatch.setenv(name, name)
        assert Settings().default_model == name
