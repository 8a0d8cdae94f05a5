"""The server's settings: their limits, and how they stand in a file beside the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.configs.engine import EngineConfig
from penstock.configs.load import load_configs
from penstock.configs.serving import ServeConfig
from penstock.errors import ConfigError


def test_a_server_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    assert (ServeConfig().host, ServeConfig().port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("port", port) for port in (0, 65536)),
        *(("num_replicas", count) for count in (0, 1025)),
        ("max_replicas", 0),
        ("target_ongoing_requests", 0),
        ("request_router", "random"),
        ("ingress", "haproxy"),
        ("app_name", "a/b"),
        ("served_model_name", ""),
        ("host", ""),
        ("max_open_requests", 0),
        ("max_open_tokens", 0),
        ("max_body_bytes", 1023),
        ("body_timeout_s", 0),
        ("max_prompts", 0),
        ("max_n", 0),
        ("max_logprobs", 21),
        ("max_stop_strings", -1),
        ("max_stop_chars", 0),
        ("grammar_timeout_s", 0),
        ("drain_timeout_s", -1),
    ],
)
def test_a_setting_beyond_its_limit_is_refused_with_its_name_and_value(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {value!r}"):
        ServeConfig(**{setting: value})


@pytest.mark.parametrize("origin", ["chat.example.com", "https://chat.example.com/", "https://*.example.com", ""])
def test_what_no_browser_calls_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed_origins is .* is no origin, such as https://"):
        ServeConfig(allowed_origins=["http://localhost:3000", origin])


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_open_requests'"):
        ServeConfig(max_open_request=1)


def test_replicas_grow_upwards_only() -> None:
    with pytest.raises(ConfigError, match="max_replicas 2 is below num_replicas 3"):
        ServeConfig(num_replicas=3, max_replicas=2)
    assert not ServeConfig().is_replicated
    assert ServeConfig(num_replicas=2).is_replicated
    assert ServeConfig(max_replicas=2).is_replicated
    assert ServeConfig(num_replicas=2, max_replicas=3).max_engines == 3


def test_no_name_means_something_to_engine_and_server_both() -> None:
    assert not EngineConfig.model_fields.keys() & ServeConfig.model_fields.keys()


def test_both_stand_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("model: demo\nport: 9000\nmax_num_seqs: 7\napi_key_file: keys\n")
    engine, serving = load_configs(str(file), max_n=3)
    assert (engine.max_num_seqs, serving.port, serving.max_n) == (7, 9000, 3)
    assert serving.api_key_file == str(tmp_path / "keys")


def test_a_model_is_served_by_its_presets_or_its_folders_name(tmp_path: Path) -> None:
    assert load_configs("demo")[1].served_model_name == "demo"
    assert load_configs("demo", served_model_name=None)[1].served_model_name == "demo"
    assert load_configs("demo", served_model_name="mine")[1].served_model_name == "mine"
    folder = tmp_path / "Qwen3-8B"
    folder.mkdir()
    assert load_configs(str(folder))[1].served_model_name == "Qwen3-8B"
