"""docker/ by reading: what is copied exists, flags are known, versions fit. test_docker_runs.py runs what it says."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray._common.usage.usage_constants import USAGE_STATS_ENABLED_ENV_VAR
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR

from penstock.configs.engine import EngineConfig
from penstock.configs.load import load_configs
from penstock.configs.serving import ServeConfig

from .dockerfiles import DOCKER, IMAGES, build_arguments, context, stages
from .test_architecture import ROOT
from .test_packaging import PACKAGE_FILES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, about pydantic
    from ray.scripts.scripts import start
    from ray.serve.schema import ServeDeploySchema

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = {one.name.lower(): one for one in map(Requirement, PROJECT["dependencies"])}
CONSTRAINTS = [
    Requirement(line) for line in (DOCKER / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NVIDIA_VARIABLES = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}  # read by the container toolkit
KNOWN_VARIABLES = {AUTH_MODE_ENV_VAR, USAGE_STATS_ENABLED_ENV_VAR, *NVIDIA_VARIABLES}
SERVE_FLAGS = {*EngineConfig.model_fields, *ServeConfig.model_fields} - {"model"}
RAY_START_FLAGS = {flag for parameter in start.params for flag in parameter.opts}
PORT = "8000"


def flags_of(words: list[str]) -> dict[str, str]:
    """`--name value`, `--name=value` and `--name` (which is then "") of a command."""
    following = [*words[1:], "--"]
    return {
        word.split("=")[0]: word.partition("=")[2] if "=" in word else "" if after.startswith("--") else after
        for word, after in zip(words, following, strict=True)
        if word.startswith("--")
    }


def check_serve(words: list[str]) -> dict[str, str]:
    """A `penstock serve …` that can be reached from outside its container; its flags."""
    assert words[:3] == ["penstock", "serve", "demo"]
    flags = flags_of(words)
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= SERVE_FLAGS
    assert (flags["--host"], flags["--port"]) == ("0.0.0.0", PORT)
    return flags


def commands(service: str) -> list[str]:
    """The lines of a service's shell script, continued ones joined."""
    shell, option, text = SERVICES[service]["command"]
    assert (shell, option) == ("sh", "-ec")
    subprocess.run([shell, "-n", "-c", text], check=True)
    return str(text).replace("\\\n", "").splitlines()


def ray_start(service: str) -> dict[str, str]:
    """The flags of a service's `ray start`, all of which Ray knows."""
    (line,) = (line for line in commands(service) if "ray start" in line)
    flags = flags_of(shlex.split(line))
    assert set(flags) <= RAY_START_FLAGS
    return flags


def test_every_stage_stands_on_one_pinned_python_or_on_a_stage_before_it() -> None:
    pythons = set()
    for image in IMAGES:
        names = set[str]()
        for stage in stages(image):
            pythons |= {stage.base} - names
            names.add(stage.name)
    (python,) = pythons
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", python)


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_or_mounted_is_there(image: str) -> None:
    files, names = context(image), set[str]()
    for stage in stages(image):
        for one in stage.all("COPY"):
            origin = one.option("from").get("from")
            assert origin in names if origin else one.words[0] == "." or Path(one.words[0]) in files
        for mount in (mount for one in stage.all("RUN") for mount in one.mounts):
            assert mount["from"] in names if "from" in mount else Path(mount["source"]) in files
            assert mount["type"] == "bind"
        names.add(stage.name)


@pytest.mark.parametrize("image", IMAGES)
def test_a_build_sees_the_package_and_nothing_it_does_not_need(image: str) -> None:
    built_from = PACKAGE_FILES | {Path(name) for name in ("pyproject.toml", "README.md", "LICENSE")}
    assert context(image) == built_from | {Path("docker/constraints.txt"), Path("docker/take_kernels.py")}


@pytest.mark.parametrize("image", IMAGES)
def test_the_source_comes_after_everything_that_takes_long(image: str) -> None:
    runs = [one.value for one in stages(image)[-1].all("RUN")]
    order = [next(i for i, run in enumerate(runs) if mark in run) for mark in ("apt-get", "torch==", "--requirement")]
    assert order == sorted(order)
    assert "--no-deps" in runs[-1]
    assert "wheel" in runs[-1]


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_serves_as_nobody_special_and_is_asked_for_its_health(image: str) -> None:
    final = stages(image)[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final.last("USER").value)
    assert final.last("EXPOSE").value == PORT
    *reaper, entry = final.last("ENTRYPOINT").words
    assert reaper == ["tini", "--"]
    check_serve([entry, *final.last("CMD").words])
    assert f"http://127.0.0.1:{PORT}/health" in final.last("HEALTHCHECK").value
    variables = dict(word.split("=", 1) for word in final.last("ENV").words)
    assert variables[USAGE_STATS_ENABLED_ENV_VAR] == "0"
    assert set(variables) <= KNOWN_VARIABLES
    packages = final.all("RUN")[0].words
    assert {"gcc", "libc6-dev", "tini"} <= set(packages)


def test_the_pinned_versions_are_in_the_ranges_of_pyproject_and_complete() -> None:
    pins = {one.name.lower(): str(one.specifier) for one in CONSTRAINTS}
    assert all(pin.startswith("==") for pin in pins.values())
    pins |= {"torch": f"=={build_arguments('Dockerfile.cpu')['TORCH_VERSION']}"}
    assert set(pins) == set(REQUIREMENTS)
    assert all(REQUIREMENTS[name].specifier.contains(pin[2:]) for name, pin in pins.items())
    assert REQUIREMENTS["torch"].specifier.contains(build_arguments("Dockerfile.gpu")["TORCH_VERSION"])


def test_the_kernels_are_checked_against_the_torch_that_is_installed() -> None:
    kernels = next(stage for stage in stages("Dockerfile.gpu") if stage.name == "kernels")
    final = stages("Dockerfile.gpu")[-1]
    assert 'take_kernels.py /vllm/*.whl "$TORCH_VERSION" /kernels' in kernels.all("RUN")[0].value
    assert any('"torch==$TORCH_VERSION"' in run.value for run in final.all("RUN"))
    for stage in (kernels, final):  # without a default of its own, so that the one before the first FROM holds
        assert "TORCH_VERSION" in [one.value for one in stage.all("ARG")]
    python = re.findall(r"python:(3\.\d+)", stages("Dockerfile.gpu")[0].base)[0]
    assert f"/usr/local/lib/python{python}/site-packages" in final.last("COPY").words


def make_wheel(path: Path, torch: str, *names: str) -> Path:
    """A wheel like vLLM's, with only these files of the kernels."""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("vllm-1.dist-info/METADATA", f"Name: vllm\nRequires-Dist: torch=={torch}\n\nRequires-Dist: no")
        wheel.writestr("vllm-1.dist-info/licenses/LICENSE", "the licence")
        for name in ("vllm/__init__.py", *(f"vllm/vllm_flash_attn/{name}" for name in names)):
            wheel.writestr(name, name)
    return path


KERNELS = ("__init__.py", "flash_attn_interface.py", "_vllm_fa2_C.abi3.so", "_vllm_fa3_C.abi3.so")


@pytest.mark.parametrize(
    ("torch", "names", "refusal"),
    [
        ("2.11.0", (*KERNELS, "cute/interface.py"), ""),
        ("2.13.0", KERNELS, "vllm.whl is built for torch 2.13.0, the image has torch 2.11.0"),
        ("2.11.0", KERNELS[:3], "vllm.whl lacks vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"),
    ],
    ids=["fits", "another torch", "incomplete"],
)
def test_only_fitting_kernels_are_taken(tmp_path: Path, torch: str, names: tuple[str, ...], refusal: str) -> None:
    wheel, site = make_wheel(tmp_path / "vllm.whl", torch, *names), tmp_path / "site"
    take = [sys.executable, str(DOCKER / "take_kernels.py"), str(wheel), "2.11.0", str(site)]
    done = subprocess.run(take, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (bool(refusal), refusal)
    taken = {str(path.relative_to(site / "vllm")) for path in site.rglob("*") if path.is_file()}
    assert taken == (set() if refusal else {f"vllm_flash_attn/{name}" for name in (*KERNELS, "LICENSE")})


def test_services_are_built_from_the_image_and_publish_the_servers_port_to_this_host_alone() -> None:
    for service in SERVICES.values():
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).name == "Dockerfile.cpu"
        assert service["entrypoint"] == stages("Dockerfile.cpu")[-1].last("ENTRYPOINT").words[:-1]
        assert set(service["environment"]) <= KNOWN_VARIABLES
        assert service["environment"][AUTH_MODE_ENV_VAR] == "disabled"
        assert service["shm_size"].endswith("gb")
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == [f"127.0.0.1:{PORT}:{PORT}"]
    assert "ports" in SERVICES["head"]


def test_the_worker_joins_the_head_and_the_server_waits_for_a_cpu_in_each() -> None:
    head, worker = ray_start("head"), ray_start("worker")
    assert worker["--address"] == f"head:{head['--port']}"
    assert "--block" in worker
    assert SERVICES["head"]["depends_on"]["worker"]["condition"] == "service_started"  # healthy only with the head
    num_cpus = int(head["--num-cpus"]) + int(worker["--num-cpus"])
    (waits,) = re.findall(r"<<'END'\n(.*?)\nEND\n", SERVICES["head"]["command"][2], re.DOTALL)
    ast.parse(waits)
    assert f'.get("CPU", 0) < {num_cpus}:' in waits
    flags = check_serve(shlex.split(commands("head")[-1].removeprefix("exec ")))
    assert (flags["--ray-address"], flags["--ingress"]) == ("auto", "proxy")
    assert int(flags["--pipeline-parallel-size"]) == num_cpus


@pytest.mark.parametrize("service", SERVICES)
def test_health_is_asked_with_what_the_image_has(service: str) -> None:
    check = SERVICES[service]["healthcheck"]
    assert check["test"][:3] == ["CMD", "python", "-c"]
    ast.parse(check["test"][3])
    assert set(check) == {"test", "interval", "timeout", "retries", "start_period"}
    port = PORT if service == "head" else ray_start(service)["--node-manager-port"]
    assert port in check["test"][3]


def test_kuberays_manifest_names_an_application_that_serve_takes() -> None:
    manifest = yaml.safe_load((DOCKER / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    serve = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = serve.applications
    assert application.import_path == "penstock.actors.app:build"
    config, _ = load_configs(**application.args)
    cluster = manifest["spec"]["rayClusterConfig"]
    assert f"ray=={cluster['rayVersion']}" in map(str, CONSTRAINTS)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(f"--{name}" in RAY_START_FLAGS for group in groups for name in group["rayStartParams"])
    assert sum(int(group["rayStartParams"]["num-cpus"]) for group in groups) == config.world_size
    assert {box["image"] for group in groups for box in group["template"]["spec"]["containers"]} == {"penstock:cpu"}
