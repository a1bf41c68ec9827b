"""What stands around the code holds together: verbs, pins, the compose file, pages that name every module."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import maskd
from maskd.front import config

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


# -- make and CI -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_when_called_without_a_verb_then_it_lists_them() -> None:
    """`make` lists every verb with a sentence, run and test among them."""
    out = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"], check=True, capture_output=True, text=True
    ).stdout
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", out, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert listed == set(phony[1].split()) >= {"run", "test", "lint", "types", "install", "help"}


def test_ci_when_read_then_it_ends_with_the_tests() -> None:
    """.ci/run is an executable bash script that stops at the first failure and ends with pytest's summary."""
    path = ROOT / ".ci" / "run"
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"
    subprocess.run(["bash", "-n", str(path)], check=True)


# -- pins --------------------------------------------------------------------------------------------------------------


def pins() -> list[Requirement]:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def project() -> dict[str, Any]:
    """[project] of pyproject.toml; tomllib came with Python 3.11."""
    try:
        import tomllib
    except ImportError:
        tomllib = pytest.importorskip("tomli")
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def test_constraints_when_read_then_every_line_is_one_exact_version() -> None:
    """No ranges, no local tags such as +cpu, no URLs or paths: any index can satisfy them."""
    for pin in pins():
        assert pin.url is None
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), pin


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_when_compared_with_the_project_then_every_dependency_is_pinned_within_its_range(
    python: str,
) -> None:
    """Every direct dependency has one pin for each Python version, and it is one that pyproject.toml allows."""
    environment = {"python_version": python}
    pinned: dict[str, str] = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonicalize_name(pin.name) not in pinned, f"{pin.name} is pinned twice for Python {python}"
            pinned[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    described = project()
    for line in [
        *described["dependencies"],
        *(line for extra in described["optional-dependencies"].values() for line in extra),
    ]:
        wanted = Requirement(line)
        version = pinned.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted.name} has no pin for Python {python}"
        assert wanted.specifier.contains(version), f"{line} does not allow {version}"


# -- compose -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text()))


def test_compose_when_read_then_the_services_share_a_directory_and_nothing_else(compose: dict[str, Any]) -> None:
    """Both services have the sockets volume, a memory limit, no network, no capabilities and a read-only root."""
    assert set(compose["services"]) == {"maskd", "loop"}
    assert compose["volumes"]["sockets"]["driver_opts"]["type"] == "tmpfs"
    for service in compose["services"].values():
        assert service["volumes"] == ["sockets:/run/maskd"]
        assert re.fullmatch(r"\d+g", service["mem_limit"])
        assert (service["network_mode"], service["cap_drop"], service["read_only"]) == ("none", ["ALL"], True)
        assert not {"ipc", "pid", "privileged"} & set(service)


def test_compose_when_started_then_the_loop_waits_for_a_healthy_daemon_at_the_same_address(
    compose: dict[str, Any],
) -> None:
    """The commands parse, the address is in the shared directory, and the health check asks there."""
    daemon, loop = compose["services"]["maskd"], compose["services"]["loop"]
    assert daemon["command"][:2] == ["maskd", "serve"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    config.flags(parser)
    listen = vars(parser.parse_args(daemon["command"][2:]))["listen"]
    assert listen.startswith("unix:/run/maskd/")
    assert daemon["healthcheck"]["test"] == ["CMD", "maskd", "info", "--listen", listen]
    assert loop["command"] == ["engine-adapter", "demo", "--target", listen]
    assert loop["depends_on"] == {"maskd": {"condition": "service_healthy"}}
    assert int(daemon["stop_grace_period"].removesuffix("s")) > config.Config().drain_seconds


def test_compose_when_built_then_what_it_copies_is_there(compose: dict[str, Any]) -> None:
    """Every COPY of the inline Dockerfiles names files of the repository, and installs are pinned and unprivileged."""
    for service in compose["services"].values():
        lines = service["build"]["dockerfile_inline"].splitlines()
        for line in lines:
            if line.startswith("COPY "):
                assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
            if "pip install" in line:
                assert "-c .ci/constraints.txt" in line
        user = next(line.split()[1] for line in lines if line.startswith("USER "))
        owner = compose["volumes"]["sockets"]["driver_opts"]["o"]
        assert f"uid={user.split(':')[0]}," in owner


# -- pages -------------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Modules that belong to the repository; work in progress beside it is not asked about."""
    found = [
        path.relative_to(ROOT) for package in ("maskd", "engine_adapter") for path in (ROOT / package).rglob("*.py")
    ]
    if shutil.which("git") and (ROOT / ".git").exists():
        tracked = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        found = [path for path in found if str(path) in tracked]
    return sorted(
        str(path.with_suffix(""))
        for path in found
        if path.name not in ("__init__.py", "__main__.py") and not {"v1", "bundled"} & set(path.parts)
    )


@pytest.mark.parametrize("module", modules())
def test_architecture_when_read_then_it_names_every_module(module: str) -> None:
    """ARCHITECTURE.md says in one line what each module is, or its package as a whole."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`([^`]+)`", text)
    inside = module.partition("/")[2]
    packages = {f"{parent}/" for parent in Path(inside).parents}
    assert {inside, Path(inside).name} & set(named) or packages & set(named)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=lambda path: path.stem)
def test_adr_when_read_then_it_has_its_three_parts_on_one_screen(path: Path) -> None:
    """A decision has Context, Decision and Consequences, its number, and no more than one screen."""
    text = path.read_text()
    assert text.startswith(f"# {path.name[:4]}. ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 40


def test_adrs_when_counted_then_no_number_is_missing_or_taken_twice() -> None:
    """Decisions are numbered 0001, 0002, …"""
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_changelog_when_read_then_it_has_the_version_or_what_comes_next() -> None:
    """CHANGELOG.md tells of the version that the package has, or of what is not released yet."""
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == maskd.__version__


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda page: str(page.relative_to(ROOT))
)
def test_page_when_read_then_its_prose_is_not_too_wide(page: Path) -> None:
    """Prose has at most 120 characters a line; tables and code may be wider."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_top_level_when_listed_then_it_has_what_was_asked_for_and_no_more() -> None:
    """proto, maskd, engine_adapter, tests, docs, and the files that belong at the top; no Dockerfile."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-tree", "--name-only", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert set(listed) - {"docs"} <= {
        ".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
        "SECURITY.md", "compose.yaml", "engine_adapter", "maskd", "proto", "pyproject.toml", "tests",
    }  # fmt: skip
