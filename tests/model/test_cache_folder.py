"""The folder of what was compiled is private, or there is none."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from penstock.model.cache_folder import cache_folder
from penstock.model.gpu import driver


def test_it_is_made_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "penstock"
    assert cache_folder().stat().st_mode & 0o077 == 0
    cache_folder().chmod(0o777)
    with pytest.raises(OSError, match="is writable by others"):
        cache_folder()


def test_a_kernel_that_cannot_be_kept_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiler:
        @staticmethod
        def nvrtcVersion(major: object, minor: object) -> int:
            return 0

    def full(file: Path, image: bytes) -> None:
        raise OSError("No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(driver, "_nvrtc", Compiler)
    monkeypatch.setattr(driver, "_compile", lambda nvrtc, source: b"image")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert driver.compiled("text") == b"image"
    assert not list(cache_folder().iterdir())


def test_a_gpu_serves_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(driver, "_nvrtc", lambda: None)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    driver.can_compile.cache_clear()
    assert not driver.can_compile()
    driver.can_compile.cache_clear()
