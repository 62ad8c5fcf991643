"""Making test vectors: ``csa-spec vectors --write DIR``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from csa_spec.answers import expected, tensors
from csa_spec.engine.running import draw_cases
from csa_spec.engine.stage import Setting
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.layouts import Layout
from csa_spec.plug.recorded import fingerprint
from csa_spec.resolving import UsageError, known_stage, listed, require_seed, resolve_dtype, resolve_variants
from csa_spec.stages import STAGES, AnyStage, parse_case
from csa_spec.vectors.catalogue import telling
from csa_spec.vectors.files import File, Vector, scalars_of, tensors_of, write_folder

DRAWN = 40
"""Cases of a stage of which none are chosen"""
MOST_CASES = 100_000
"""Of a file"""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written into one file."""

    file: File
    bytes: int


def write_vectors(
    folder: Path,
    stage: str = "all",
    layer: str = "all",
    dtype: str = "float32",
    cases: int | None = None,
    seed: int = 0,
    most_bytes: float = float("inf"),
) -> list[Written]:
    """Write vectors of some stages into a folder; return what was written.

    Parameters
    ----------
    folder
        Made if it is not there. An index that is there is replaced.
    stage, dtype
        One, or several separated by commas; ``all`` stages.
    layer
        A layer kind or ``all``, for stages that have some.
    cases
        How many drawn cases a file gets; None: those that tell the known bugs of the stage apart, where such are
        chosen, else 40.
    seed
        Of the drawn cases.
    most_bytes
        Of one case; larger ones are left out.

    Raises
    ------
    UsageError
        If a name is not known, or a number makes no sense.
    OSError
        If something cannot be written.
    """
    if cases is not None and not 0 < cases <= MOST_CASES:
        raise UsageError(f"cases must be from 1 to {MOST_CASES:,}, not {cases}")
    require_seed(seed)
    names, dtypes = listed(stage), listed(dtype)
    chosen_stages = list(STAGES.values()) if stage == "all" else [known_stage(name) for name in names]
    for name in dtypes:
        resolve_dtype(name)
    files: list[tuple[File, Mapping[str, Tensor]]] = []
    for one in chosen_stages:
        for variant, name in product(resolve_variants(layer, one), dtypes):
            file, data = _made(one, variant, name, _chosen(one, variant, name, cases, seed), most_bytes)
            files.append((file, data))
    write_folder(folder, files, version("csa-spec"))
    return [Written(file, sum(tensor.nbytes for tensor in data.values())) for file, data in files]


def summarise_written(folder: Path, written: Sequence[Written]) -> str:
    """Return a line for each file, and where they are."""
    lines = [_summary(one) for one in written]
    total = sum(one.bytes for one in written)
    return "\n".join(
        [*lines, f"{folder}: {sum(len(one.file.cases) for one in written)} cases, {_size(total)}"]
    )


def _summary(one: Written) -> str:
    bugs = {bug for vector in one.file.cases for bug in vector.bugs}
    power = f", which tell {len(bugs)} known bugs apart" if bugs else ""
    return f"{one.file.file:<36} {len(one.file.cases):>4} cases, {_size(one.bytes)}{power}"


def _size(count: int) -> str:
    return f"{count / 1000:,.0f} kB"


def _chosen(
    stage: AnyStage, variant: str, dtype: str, cases: int | None, seed: int
) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield cases, and the known bugs that each tells apart."""
    chosen = telling(stage.subject(variant))
    if cases is None and chosen:
        for line, bugs in chosen.items():
            yield replace(parse_case(line), dtype=dtype), bugs if dtype == "float32" else ()
        return
    drawn = draw_cases(stage.draws.cases(variant, Setting(dtype)), cases or DRAWN, seed)
    plain = dict.fromkeys(plainest(case) for case in drawn)
    for case in sorted(plain, key=lambda case: case.order):
        yield case, ()


def plainest(case: Any) -> Any:
    """Return the nearest case that an implementation supports which declares nothing, plain in memory."""
    return replace(case, layout=Layout.PLAIN, mode="").fit(Capabilities())[0]


def _made(
    stage: AnyStage,
    variant: str,
    dtype: str,
    chosen: Iterator[tuple[Any, tuple[str, ...]]],
    most_bytes: float,
) -> tuple[File, dict[str, Tensor]]:
    label = stage.subject(variant).replace(" ", "-") + f"-{dtype}"
    vectors: list[Vector] = []
    data: dict[str, Tensor] = {}
    seen: set[str] = set()
    for case, bugs in chosen:
        arguments, name = tensors(case), f"{label}-{len(vectors)}"
        inputs = fingerprint(arguments)
        if inputs in seen:  # a seed that decides nothing, say
            continue
        seen.add(inputs)
        own = tensors_of(name, arguments, expected(case))
        if sum(tensor.nbytes for tensor in own.values()) > most_bytes:
            continue
        data |= own
        vectors.append(Vector(name, str(case), scalars_of(arguments), bugs))
    return File(f"{label}.safetensors", stage.name, variant, dtype, stage.arguments, tuple(vectors)), data
