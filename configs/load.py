"""From what a user calls a model to an engine's settings: a preset's name, a YAML file, or a model folder.

A bare name that is a preset means the preset, wherever the process stands; write `./demo` for a folder of that name.
Paths inside a YAML file are relative to that file, and every path is absolute afterwards, because the ranks that read
the weights run elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, ModelError
from .engine import EngineConfig
from .problems import unknown_name
from .serving import ServeConfig

PRESETS = Path(__file__).parent / "presets"
_PATHS = ("model", "tokenizer")
_NAMES = {**EngineConfig.model_fields, **ServeConfig.model_fields}


def preset_names() -> list[str]:
    """The presets that ship with Penstock."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(model: str | Path = "demo", **settings: object) -> EngineConfig:
    """The engine's settings for `model`; those given here win over the YAML file's, a server's are left aside.

    Raises ModelError where there is no such model, ConfigError for a wrong setting, file or key.
    """
    return load_configs(model, **settings)[0]


def load_configs(model: str | Path = "demo", **settings: object) -> tuple[EngineConfig, ServeConfig]:
    """The engine's and the server's settings, as `load_config`; a server without a name for its model gets one."""
    if not isinstance(model, str | Path):
        raise ModelError(f"model is {model!r}; it is a folder, a YAML file or a preset ({', '.join(preset_names())})")
    model = str(model)
    values = _file_values(model)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    if isinstance(tokenizer := settings.get("tokenizer"), str):
        settings["tokenizer"] = str(_folder(tokenizer, Path.cwd(), "tokenizer"))
    if isinstance(key_file := settings.get("api_key_file"), str):
        settings["api_key_file"] = str(Path(key_file).expanduser().absolute())
    values |= settings
    serving = {name: values.pop(name) for name in list(values) if name in ServeConfig.model_fields}
    config = EngineConfig(**values)
    if serving.get("served_model_name") is None:
        serving["served_model_name"] = model if model in preset_names() else Path(config.model).name
    return config, ServeConfig(**serving)


def _file_values(model: str) -> dict[str, Any]:
    """What a preset, a YAML file or a folder says by itself."""
    path = Path(model).expanduser()
    if model in preset_names():
        return _read_yaml(PRESETS / f"{model}.yaml")
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _read_yaml(path)
    if path.is_dir():
        return {"model": str(path.resolve())}
    raise ModelError(
        f"no such model: {model!r} is neither a folder, nor a YAML file, nor a preset ({', '.join(preset_names())})"
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    """The file's settings, checked for their names, its paths made absolute."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} can't be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds {type(values).__name__}, not a mapping of settings to values")
    for key in values:
        if key not in _NAMES:
            raise ConfigError(f"{file}: {unknown_name(str(key), _NAMES, 'key')}")
    if "model" not in values:
        raise ConfigError(f"{file} names no model; it needs a key 'model' with a folder or a preset's name")
    for key in _PATHS:
        if isinstance(value := values.get(key), str):
            values[key] = str(_folder(value, file.parent, f"{file}: {key}"))
    if isinstance(key_file := values.get("api_key_file"), str):
        values["api_key_file"] = str((file.parent / Path(key_file).expanduser()).resolve())
    return values


def _folder(value: str, base: Path, what: str) -> Path:
    """A folder, or the folder that a preset stands for."""
    if value in preset_names():
        return Path(_read_yaml(PRESETS / f"{value}.yaml")["model"])
    folder = (base / Path(value).expanduser()).resolve()
    if not folder.is_dir():
        raise ModelError(f"{what} is {value!r}: no such folder ({folder})")
    return folder
