"""The format of test vectors: ``index.json`` and a safetensors file for each stage, layer kind and dtype.

A case named ``attend-float32-0`` has the tensors ``attend-float32-0.in.q`` and so on for each tensor that the stage
is called with, ``.out`` (float64; int64 where the stage selects), ``.tolerance`` (float32) and ``.compared`` (bool);
where selections may tie also ``.certain``, ``.contested`` and ``.places``: :class:`csa_spec.Reference` says what
these are. Arguments that are numbers are tensors without dimensions; the index has them too, and those that are
neither. ``docs/schema/vectors.json`` is the schema of the index.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from csa_spec.engine.reference import Reference
from csa_spec.plug.arrays import named_arrays, named_tensors, same_bits
from csa_spec.plug.plain import plain_line, shown
from csa_spec.plug.reading import Unreadable, is_file_name, is_folder, read_as

FORMAT, VERSION = "csa-spec vectors", 1
INDEX = "index.json"


class VectorsError(Exception):
    """Files of vectors or answers are missing, broken or of another version; the message says which."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One case, as a file has it."""

    name: str
    """In all files"""
    case: str
    """Its line of text"""
    scalars: Mapping[str, Any]
    """Arguments that are no tensors, by name"""
    bugs: tuple[str, ...] = ()
    """Known bugs that give a wrong answer to it, where that is known"""


@dataclass(frozen=True, slots=True)
class File:
    """One file of vectors."""

    file: str
    """Its name"""
    stage: str
    variant: str
    """The layer kind, for stages that have some"""
    dtype: str
    arguments: tuple[str, ...]
    """In the order in which the stage is called with them"""
    cases: tuple[Vector, ...]


def scalars_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are no tensors, as JSON has them."""
    return {name: _plain(value) for name, value in arguments.items() if not named_arrays({name: value})}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value


def _numbers(scalars: Mapping[str, Any], within: str = "") -> dict[str, Tensor]:
    """Return every number as a tensor without dimensions: whoever reads these needs no index."""
    numbers: dict[str, Tensor] = {}
    for name, value in scalars.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, f"{within}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            dtype = torch.int64 if isinstance(value, int) else torch.float64
            numbers[within + name] = torch.tensor(value, dtype=dtype)
    return numbers


def tensors_of(name: str, arguments: Mapping[str, Any], reference: Reference) -> dict[str, Tensor]:
    """Return the tensors of a case by their names in the file."""
    inputs = {**named_tensors(arguments), **_numbers(scalars_of(arguments))}
    given = {f"{name}.in.{key}": tensor for key, tensor in inputs.items()}
    answers = {"out": reference.output, "compared": reference.compared}
    if reference.tolerance is not None:
        answers["tolerance"] = reference.tolerance.float()
    if reference.choices is not None and bool(reference.choices.ambiguous.any()):
        answers |= {
            "certain": reference.choices.certain,
            "contested": reference.choices.contested,
            "places": reference.choices.places,
        }
    named = given | {f"{name}.{key}": tensor for key, tensor in answers.items()}
    return {key: tensor.contiguous().clone() for key, tensor in named.items()}


def write_folder(folder: Path, files: Sequence[tuple[File, Mapping[str, Tensor]]], version: str) -> None:
    """Write files of vectors, and the index last, so that an interrupted run leaves no folder that looks whole.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    index.unlink(missing_ok=True)
    for file, tensors in files:
        try:
            save_file(dict(tensors), folder / file.file)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"{file.file}: {plain_line(error, 200)}") from None
    listed = [asdict(file) for file, _ in files]
    data = {"format": FORMAT, "version": VERSION, "csa-spec": version, "files": listed}
    index.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_index(folder: Path) -> list[File]:
    """Return what a folder of vectors lists.

    Raises
    ------
    VectorsError
        If it is none, or of another version.
    """
    path = folder / INDEX
    if not is_folder(folder):
        raise VectorsError(f"{folder} is not a folder; name one that `csa-spec vectors --write` made")
    try:
        data = read_as("JSON", json.loads, path)
    except Unreadable as error:
        raise VectorsError(f"{path} {error}; name a folder that `csa-spec vectors --write` made") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise VectorsError(f"{path} is no index of vectors that `csa-spec vectors --write` made")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise VectorsError(
            f"{path} is of version {plain_line(data.get('version'), 40)}, not {VERSION}; write anew"
        )
    try:
        files = [_file(entry) for entry in data["files"]]
    except KeyError as error:
        raise VectorsError(f"{path} is broken: it lacks {plain_line(error, 80)}; write it anew") from None
    except TypeError:
        raise VectorsError(
            f"{path} is broken: a field in it is of another type than csa-spec writes; write it anew"
        ) from None
    if problem := _problem(files):
        raise VectorsError(f"{path} is broken: {problem}; write it anew")
    return files


def _file(entry: Any) -> File:
    """Return an entry of the index. A later version may have more fields, which mean nothing to this one."""
    cases = tuple(
        Vector(_text(case["name"]), _text(case["case"]), case["scalars"], _texts(case["bugs"]))
        for case in entry["cases"]
    )
    file, stage, variant, dtype = (_text(entry[name]) for name in ("file", "stage", "variant", "dtype"))
    return File(file, stage, variant, dtype, _texts(entry["arguments"]), cases)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError
    return tuple(map(_text, values))


def _problem(files: Sequence[File]) -> str:
    """Say what cannot be right in an index whose fields are all there; nothing where all can be."""
    if not files:
        return "it lists no file"
    for file in files:
        if not is_file_name(file.file):
            return f"{shown(file.file)} is not the name of a file in its folder"
        if not file.cases:
            return f"it lists no case of {file.file}"
    names = [vector.name for file in files for vector in file.cases]
    twice = next((name for name, count in Counter(names).items() if count > 1), "")
    return f"it lists the case {shown(twice)} twice" if twice else ""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises
    ------
    VectorsError
        If it is none.
    """
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for whoever writes to it
            raise VectorsError(f"{path} is not a file")
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or plain_line(error, 200)
        raise VectorsError(f"{path} is not a readable safetensors file: {reason}") from None


def same_inputs(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the inputs of a case in a file are those that this version makes."""
    return all(
        f"{name}.in.{key}" in tensors and same_bits(tensors[f"{name}.in.{key}"], tensor)
        for key, tensor in named_tensors(arguments).items()
    )
