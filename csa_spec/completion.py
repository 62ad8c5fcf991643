"""Tab completion, made by shtab: ``shtab --shell=bash csa_spec.completion.parser``.

The script is made once, with all names in it, so that a tab costs no import of torch.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shtab

from csa_spec.cli import make_parser
from csa_spec.resolving import choices


def parser() -> argparse.ArgumentParser:
    """Return the command's parser, with what its options can be where that is listed, and where files go."""
    whole, lists = make_parser(), choices()
    (commands,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            _complete(action, lists)
        command.fill(lists)
    return whole


def _complete(action: Any, lists: Mapping[str, str]) -> None:
    named = re.findall(r"{(\w+)}", action.help or "")
    if named:
        action.choices = [*lists[named[0]].split(", "), *["all"] * (" or all" in action.help)]
    elif action.type is Path:
        action.complete = shtab.DIRECTORY if action.metavar in ("DIR", "BUNDLE") else shtab.FILE
