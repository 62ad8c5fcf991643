"""The source distribution is complete, and the README reads the same wherever it is shown."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from fnmatch import fnmatch
from pathlib import Path

import pytest
from distribution import NOT_SOURCE, REPOSITORY, environment, pip, run

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SOURCE = "https://github.com/csa-spec/csa-spec"
PICTURES = "https://raw.githubusercontent.com/csa-spec/csa-spec/main/"
FAST = ("tests/test_layering.py", "tests/spec/test_index_arithmetic.py")
"""Tests of the package and of the files around it"""


def checkout() -> set[str]:
    """Return the files of the checkout, without what git ignores."""
    paths = (path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if not any(fnmatch(part, pattern) for part in path.parts for pattern in NOT_SOURCE)
    }


def metadata(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_a_source_distribution_holds_every_file_of_the_repository(sdist: tuple[Path, str]) -> None:
    """So that its tests and the commands of its docs can be run."""
    with tarfile.open(sdist[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert checkout() - names == set()
    made = {name for name in names - checkout() if ".egg-info/" not in name}
    assert made == {"PKG-INFO", "setup.cfg"}


def test_a_build_has_no_warning(sdist: tuple[Path, str], built_wheel: tuple[Path, str]) -> None:
    """Of a file that is found by luck, a key that is deprecated, or a pattern that matches nothing."""
    for _, printed in (sdist, built_wheel):
        assert "pyproject.toml" in printed or "copying" in printed
        assert [line for line in printed.splitlines() if re.search("(?i)warn|deprecat|absent", line)] == []


def test_tests_run_from_a_source_distribution(unpacked: Path, tmp_path: Path) -> None:
    """Some that are fast, with the package that lies beside them."""
    python = environment(tmp_path / "venv")
    pip("install", "--no-deps", "--no-build-isolation", "-e", str(unpacked), python=python)
    where = "import csa_spec.strategies; print(csa_spec.strategies.__file__)"
    assert run("-c", where, python=python).strip() == str(unpacked / "strategies" / "__init__.py")
    assert " passed" in run("-m", "pytest", "-q", *FAST, folder=unpacked, python=python)


def test_the_metadata_says_where_to_go(wheel: Path) -> None:
    """The README, its addresses, its licence as an SPDX expression, and the versions of Python that it takes."""
    described = metadata(wheel)
    assert described["Description-Content-Type"] == "text/markdown"
    assert str(described.get_payload()).strip() == README.strip()
    urls = dict(line.split(", ") for line in described.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Source", "Issues", "Changelog"}
    assert all(url.startswith(SOURCE) for url in urls.values())
    assert described["License-Expression"] == "Apache-2.0"
    versions = [line for line in described.get_all("Classifier", []) if line.startswith("Programming")]
    assert not any("License" in line for line in described.get_all("Classifier", []))
    assert f"Programming Language :: Python :: {described['Requires-Python'].removeprefix('>=')}" in versions


def links(text: str) -> list[str]:
    """Return what a text in Markdown links to, without its code."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", text)
    used = set(re.findall(r"\[([^\]]+)\](?![(:])", re.sub(r"(?m)^\[[^\]]+\]: .*$", "", prose)))
    defined = dict(re.findall(r"(?m)^\[([^\]]+)\]: (\S+)$", prose))
    assert used == set(defined), "a link without an address, or an address without a link"
    return [*re.findall(r"\]\(([^)]+)\)", prose), *defined.values()]


def test_the_readme_has_no_relative_link() -> None:
    """On PyPI it would lead nowhere."""
    assert [target for target in links(README) if not target.startswith("https://")] == []


def test_links_of_the_readme_to_the_repository_lead_somewhere() -> None:
    """Files and folders that exist, under the right address, and headings in them."""
    inside = [target for target in links(README) if target.startswith((f"{SOURCE}/", PICTURES))]
    assert len(inside) > 15
    for target in inside:
        assert broken(target) == "", target


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (f"{SOURCE}/blob/main/docs/none.md", "no such file"),
        (f"{SOURCE}/blob/main/docs", "no such file"),
        (f"{SOURCE}/tree/main/docs", ""),
        (f"{SOURCE}/blob/main/docs/stages.md#streams", ""),
        (f"{SOURCE}/blob/main/docs/stages.md#brooks", "no such heading"),
        (f"{PICTURES}docs/layer.svg", ""),
        (f"{SOURCE}/blob/other/docs/layer.svg", "not of the main branch"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(target: str, why: str) -> None:
    """Each way to be wrong."""
    assert broken(target) == why


def broken(target: str) -> str:
    """Say what is wrong with a link to the repository; nothing where it is right."""
    address, _, heading = target.partition("#")
    kind, _, name = address.removeprefix(PICTURES).removeprefix(f"{SOURCE}/").rpartition("/main/")
    if address.startswith(PICTURES):
        kind, name = "blob", address.removeprefix(PICTURES)
    if kind not in ("blob", "tree"):
        return "not of the main branch"
    path = REPOSITORY / name
    if not (path.is_dir() if kind == "tree" else path.is_file()):
        return "no such file"
    title = f"# {heading.replace('-', ' ')}\n"
    return "" if not heading or title in path.read_text("utf-8").lower() else "no such heading"
