"""The page about adapters: its modules are conformant by its commands, and its names are those that can be declared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from distribution import REPOSITORY, run, run_alone

from csa_spec.stages import STAGES

PAGE = (REPOSITORY / "docs" / "adapters.md").read_text(encoding="utf-8")
SHORT = ("--profile", "smoke")


def sections() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield heading, blocks of Python and commands of each section."""
    for section in PAGE.split("\n## ")[1:]:
        python, text = (re.findall(rf"(?ms)^```{name}\n(.*?)^```$", section) for name in ("python", "text"))
        yield section.partition("\n")[0], python, text


COMMANDS = {heading: commands for heading, blocks, commands in sections() if blocks}


@pytest.fixture(scope="module")
def results(installed: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Write the modules next to the examples, and run the commands with an installed wheel and few cases."""
    folder = tmp_path_factory.mktemp("adapters") / "examples"
    shutil.copytree(REPOSITORY / "examples", folder)
    for _, blocks, _ in sections():
        for block in blocks:
            name = block.partition("\n")[0].removeprefix("# ")
            (folder / name).write_text(block, encoding="utf-8")
    run("put_back.py", folder=folder, python=installed)  # the only one that no command imports
    lines = [line.strip() for commands in COMMANDS.values() for line in commands]
    return run_alone(installed, folder, [f"{line} --profile smoke" for line in lines])


@pytest.mark.parametrize("heading", COMMANDS)
def test_the_command_of_a_section_finds_its_module_conformant(
    heading: str, results: dict[str, tuple[int, str]]
) -> None:
    """As the page says, outside of the repository."""
    assert COMMANDS[heading]
    for line in COMMANDS[heading]:
        code, printed = results[f"{line.strip()} --profile smoke"]
        assert code == 0, printed


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
