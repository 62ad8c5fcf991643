"""The page about adapters: its modules are conformant by its commands, and its names are those that can be declared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from distribution import REPOSITORY
from test_examples import folder  # noqa: F401 - a fixture

from csa_spec.cli import main
from csa_spec.stages import STAGES

PAGE = (REPOSITORY / "docs" / "adapters.md").read_text(encoding="utf-8")
SHORT = ("--profile", "smoke")


def sections() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield heading, blocks of Python and commands of each section."""
    for section in PAGE.split("\n## ")[1:]:
        python, text = (re.findall(rf"(?ms)^```{name}\n(.*?)^```$", section) for name in ("python", "text"))
        yield section.partition("\n")[0], python, text


SECTIONS = [pytest.param(blocks, commands, id=heading) for heading, blocks, commands in sections() if blocks]


@pytest.mark.parametrize(("blocks", "commands"), SECTIONS)
def test_the_modules_of_a_section_run_and_its_command_finds_them_conformant(
    blocks: list[str],
    commands: list[str],
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Next to the examples, as the page says; with few cases."""
    for block in blocks:
        name = block.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(block, encoding="utf-8")
        exec(compile(block, name, "exec"), {"__name__": name.removesuffix(".py")})
    assert commands
    for command in commands:
        code = main([*shlex.split(command)[1:], *SHORT])
        assert code == 0, capsys.readouterr()


def test_the_tables_name_everything_that_can_be_declared() -> None:
    """For each stage what ``lacks`` may name, in the order of the stage, and what it means."""
    for name, stage in STAGES.items():
        ours = [names for place, names in stage.case.may_lack().items() if place in (name, "csa")]
        rows = PAGE.partition(f"\n### `{name}`")[2].partition("\n#")[0]
        listed = [
            item for row in re.findall(r"(?m)^\| (`.*?) \|", rows) for item in re.findall("`([^`]+)`", row)
        ]
        assert sorted(listed) == sorted(ours[0]), name
        assert all(len(row.split("|")) == 4 for row in rows.splitlines() if row.startswith("|"))


def test_its_links_lead_somewhere() -> None:
    """Files of the repository."""
    targets = [part.split(")")[0].partition("#")[0] for part in PAGE.split("](")[1:]]
    assert [target for target in targets if not (REPOSITORY / "docs" / target).exists()] == []
