"""API keys: where they come from, and whom they keep out."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.actors.app import application
from penstock.actors.serving.auth import VARIABLE, Keys, load_keys
from penstock.actors.serving.errors import ApiError
from penstock.configs.load import load_configs
from penstock.errors import ConfigError

from .served import Served


@pytest.mark.parametrize("value", [None, "", "one", "Bearer", "Bearer ", "Bearer three", "Basic one", "Bearer öne"])
def test_without_a_valid_key_nothing_is_served(value: str | None) -> None:
    with pytest.raises(ApiError, match="Authorization: Bearer KEY") as refused:
        Keys(["one", "two"]).check(value)
    assert refused.value.status == 401


@pytest.mark.parametrize("value", ["Bearer one", "bearer two", "Bearer  one "])
def test_each_key_opens(value: str) -> None:
    Keys(["one", "two"]).check(value)


def test_a_key_may_be_of_any_letters() -> None:
    Keys(["clé à"]).check("Bearer clé à".encode().decode("latin-1"))


def test_a_server_without_keys_is_open() -> None:
    Keys([]).check(None)


def test_every_endpoint_of_the_model_asks_for_the_key_and_the_operators_ones_do_not() -> None:
    served = Served(keys=Keys(["one"]))
    for path in ("/v1/models", "/v1/models/demo"):
        assert served.get(path).status_code == 401
        assert served.get(path).headers["www-authenticate"] == "Bearer"
        assert served.get(path, authorization="Bearer one").status_code == 200
    answers = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
    for path in (*answers, "/tokenize", "/detokenize", "/v1/embeddings"):
        assert served.refusal(path, 401)["code"] == "invalid_api_key"
    for path in ("/health", "/metrics", "/version"):
        assert served.get(path).status_code == 200


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n two \n")
    monkeypatch.setenv(VARIABLE, "three")
    keys = load_keys(str(file))
    for key in ("one", "two", "three"):
        keys.check(f"Bearer {key}")
    with pytest.raises(ApiError):
        keys.check("Bearer # ours")


def test_without_either_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    load_keys(None).check(None)


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe"])
def test_a_file_without_keys_opens_nothing(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="api_key_file"):
        load_keys(str(file))
    with pytest.raises(ConfigError, match="can't be read"):
        load_keys(str(tmp_path / "missing"))


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_replica_gets_the_keys_of_whoever_builds_the_application_as_digests(
    num_replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "only-here")
    bound = application(*load_configs("demo", num_replicas=num_replicas))._bound_deployment
    (keys,) = [each for each in bound.init_args if isinstance(each, Keys)]
    monkeypatch.delenv(VARIABLE)
    assert "only-here" not in repr(vars(keys))
    keys.check("Bearer only-here")
    with pytest.raises(ApiError):
        keys.check(None)
