"""What the project shows: its public names, its folders, its commands, its documents."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import tomllib

from tests.layers.tree import PACKAGES, ROOT, parsed, short, sources

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *ROOT.glob("examples/*/README.md"),
]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def test_public_names() -> None:
    import compressor

    assert sorted(compressor.__all__) == [
        "CompressError",
        "Result",
        "__version__",
        "compress",
        "load_module",
        "load_recipe",
        "load_record",
    ]


def test_public_names_lead_somewhere() -> None:
    import compressor

    homes = {
        name: compressor._HOMES[name] for name in compressor.__all__ if name in compressor._HOMES
    }
    for name, home in homes.items():
        assert getattr(compressor, name) is getattr(importlib.import_module(home), name)


def test_one_version() -> None:
    import compressor

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == compressor.__version__
    assert f"[{compressor.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("path", sources(), ids=short)
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "no module docstring"


def test_names_follow_the_grammar() -> None:
    for path in (ROOT / "compressor" / "passes").glob("[!_]*.py"):
        assert re.fullmatch(r"recover|[a-z]+_[a-z0-9_]+", path.stem), path.name
    for path in (ROOT / "exporters").glob("[!_]*.py"):
        assert path.stem == "base" or path.stem.startswith("to_"), path.name


def test_commands_in_documents_exist_in_the_makefile() -> None:
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"^    make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named
        assert named <= goals, name


def test_verbs_in_the_readme_exist() -> None:
    from tests.layers.test_bare import cli

    text = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"^    compress ([a-z]+)", text, re.MULTILINE))
    assert {"run", "plan", "verify"} <= verbs
    known = cli("--help", blocked=()).stdout
    assert {verb for verb in verbs if not re.search(rf"\b{verb}\b", known)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_links_resolve(document: Path) -> None:
    broken = [
        t for t, _ in LINK.findall(document.read_text()) if not (document.parent / t).exists()
    ]
    assert not broken


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake test" in script
    assert "    make test" in (ROOT / "README.md").read_text()
