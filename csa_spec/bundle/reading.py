"""Read the ``case.json`` of a bundle. What is damaged is one sentence; nothing of a bundle is executed."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csa_spec.engine.case import CaseError
from csa_spec.plug.arrays import named_tensors
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.names import unknown
from csa_spec.plug.plain import plain_line, shown
from csa_spec.plug.reading import Unreadable, is_folder, is_there, read_as
from csa_spec.stages import AnyStage, parse_case, stage_of

VERSION = 2
"""Raised whenever a reader of the old layout would misread the new one. Version 1 counted ``agreeing`` and
``tried`` in a diagnosis; what :func:`read_bundle` needs is the same in both."""
CASE_FILE = "case.json"
_TEXTS = ("candidate", "check", "kind", "case_line", "inputs_sha256")


class BundleError(Exception):
    """A bundle that cannot be used; the message is one sentence that names it."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a bundle says about its failure."""

    folder: Path
    candidate: str
    check: str
    kind: str
    case: Any
    digest: str
    """Of the tensors that the case made then"""


def read_bundle(folder: Path) -> Recorded:
    """Read a bundle.

    Raises
    ------
    BundleError
        If there is none, or it is damaged, or of a version or a stage that is not known here.
    """
    data = _load(folder)
    version = data.get("csa_spec_bundle")
    if version is None:
        raise BundleError(f"{folder}: {CASE_FILE} does not belong to a bundle")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        odd = shown(version, 40)
        raise BundleError(f"{folder}: the bundle's version must be a positive integer, not {odd}")
    if version > VERSION:
        newer = f"the bundle has version {plain_line(version, 40)}, and this csa-spec reads up to {VERSION}"
        raise BundleError(f"{folder}: {newer}; install a newer csa-spec")
    texts = {name: _text(folder, data, name) for name in _TEXTS}
    try:
        case = parse_case(texts["case_line"])
    except CaseError as error:
        raise BundleError(f"{folder}: its case cannot be read: {plain_line(error)}") from None
    stage = stage_of(case)
    known = [check.name for check in stage.checks]
    if texts["check"] not in known:
        raise BundleError(f"{folder}: {unknown('check', texts['check'], known, stage.name)}")
    candidate, kind = (plain_line(texts[name], 200) for name in ("candidate", "kind"))
    return Recorded(folder, candidate, texts["check"], kind, case, texts["inputs_sha256"])


def _load(folder: Path) -> dict[str, Any]:
    if not _holds(folder):
        missing = f"it has no {CASE_FILE}" if is_folder(folder) else "there is no such folder"
        raise BundleError(f"{folder}: this is not a bundle; {missing}")
    try:
        data = read_as("JSON", json.loads, folder / CASE_FILE)
    except Unreadable as problem:
        raise BundleError(f"{folder}: {CASE_FILE} {problem}") from None
    if not isinstance(data, dict):
        raise BundleError(f"{folder}: {CASE_FILE} must be a JSON object, not {type(data).__name__}")
    return data


def _text(folder: Path, data: dict[str, Any], name: str) -> str:
    if name not in data:
        raise BundleError(f"{folder}: {CASE_FILE} lacks {name!r}")
    value = data[name]
    if not isinstance(value, str) or not value:
        raise BundleError(f"{folder}: {name!r} of {CASE_FILE} must be text, not {type(value).__name__}")
    return value


def _holds(folder: Path) -> bool:
    """Whether a folder is a bundle; a name that no file can have, or a loop of links, is none."""
    try:
        return is_there(folder / CASE_FILE)
    except (OSError, ValueError, RuntimeError):
        return False


def bundles_in(folder: Path) -> list[Path]:
    """Return the bundles that a folder holds, or the folder itself where it is one, or holds none."""
    try:
        if _holds(folder) or not is_folder(folder):
            return [folder]
        inner = [path.parent for path in folder.glob(f"*/{CASE_FILE}")]
    except (OSError, ValueError, RuntimeError):
        return [folder]  # reading it says why
    return sorted(bundle for bundle in inner if not bundle.name.startswith(".")) or [folder]


def candidates_in(folder: Path) -> dict[Path, str]:
    """Return the bundles that a folder holds, with the name of the candidate that failed in each."""
    names = {}
    for bundle in bundles_in(folder):
        with suppress(BundleError):  # what cannot be read is nobody's
            names[bundle] = plain_line(_text(bundle, _load(bundle), "candidate"), 200)
    return names


def digest_of(stage: AnyStage, case: Any) -> str:
    """Return the SHA-256 of a case's tensors: whether a reader's torch makes the same."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(stage.trial(Candidate("nobody"), case).arguments).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
