"""What a user may call a model: a preset, a YAML file, a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.configs.load import load_config, preset_names
from penstock.errors import ConfigError, ModelError


def yaml(folder: Path, text: str) -> str:
    (folder / "engine.yaml").write_text(text)
    return str(folder / "engine.yaml")


def test_the_demo_preset_is_the_shipped_model() -> None:
    assert "demo" in preset_names()
    assert (Path(load_config("demo").model) / "config.json").is_file()


def test_a_folder_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("./demo", max_num_seqs=3).model == str(tmp_path / "demo")
    assert load_config("demo").model != str(tmp_path / "demo")


def test_settings_given_win_over_the_files(tmp_path: Path) -> None:
    file = yaml(tmp_path, "model: demo\nmax_num_seqs: 8\nblock_size: 32\n")
    config = load_config(file, max_num_seqs=4)
    assert (config.max_num_seqs, config.block_size, config.model) == (4, 32, load_config("demo").model)


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "words").mkdir()
    config = load_config(yaml(tmp_path, "model: weights\ntokenizer: words\n"))
    assert (config.model, config.tokenizer) == (str(tmp_path / "weights"), str(tmp_path / "words"))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("model: demo\npipeline_parralel_size: 2\n", ConfigError, "engine.yaml: unknown key.*'pipeline_parallel_size'"),
        ("max_num_seqs: 2\n", ConfigError, "names no model"),
        ("- demo\n", ConfigError, "holds list, not a mapping"),
        ("", ConfigError, "holds NoneType"),
        ("model: [demo\n", ConfigError, "can't be read as YAML"),
        ("model: nowhere\n", ModelError, "'nowhere': no such folder"),
        ("model: demo\nblock_size: none\n", ConfigError, "block_size is 'none'"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_config(yaml(tmp_path, text))


def test_a_model_that_is_nowhere_names_the_presets() -> None:
    with pytest.raises(ModelError, match=r"'nowhere' is neither a folder, nor a YAML file, nor a preset \(.*demo"):
        load_config("nowhere")


@pytest.mark.parametrize("model", [None, 5, b"demo"])
def test_what_could_name_no_model_says_what_does(model: object) -> None:
    with pytest.raises(ModelError, match=r"model is .*; it is a folder, a YAML file or a preset \(.*demo"):
        load_config(model)  # type: ignore[arg-type]


def test_paths_are_as_good_as_text(tmp_path: Path) -> None:
    config = load_config(tmp_path, tokenizer=tmp_path, trace=tmp_path / "trace.json")
    assert config == load_config(str(tmp_path), tokenizer=str(tmp_path), trace=str(tmp_path / "trace.json"))


def test_a_tokenizers_folder_has_to_be_there() -> None:
    with pytest.raises(ModelError, match="tokenizer is 'nowhere': no such folder"):
        load_config("demo", tokenizer="nowhere")
