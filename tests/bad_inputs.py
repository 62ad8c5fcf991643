"""Inputs that mean nothing: command lines, cases, files, declarations.

``bad_inputs.txt`` has the sentence that each must get; ``python tests/bad_inputs.py --write`` writes it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save

import csa_spec
from csa_spec import Capabilities
from csa_spec.cli import main
from csa_spec.vectors.catalogue import READY

OFFICIAL = Path(__file__).parent / "vectors" / "official"


class Bad(NamedTuple):
    """One input."""

    shown: str
    """As a table shows it; the command, where nothing else is said"""
    command: str
    """What follows ``csa-spec``, or Python to evaluate; ``{6000 digits}`` stands for those"""
    files: Mapping[str, bytes] = MappingProxyType({})
    """What lies in the folder that it is run in"""
    python: bool = False
    words: tuple[str, ...] = ()
    """In place of a command"""


BUNDLE: dict[str, Any] = {
    "csa_spec_bundle": 2,
    "candidate": "gather",
    "check": "specification",
    "kind": "WrongNumbers",
    "case_line": "attend N=1 n=1",
    "inputs_sha256": "0",
}


def case(line: str) -> Bad:
    """Return a case line."""
    return Bad(f"case {line}", f"case gather {shlex.quote(line)}")


def check(options: str) -> Bad:
    """Return options of ``check``."""
    return Bad(f"check {options}", f"check {options}")


def known(content: str | bytes, shown: str = "") -> Bad:
    """Return a file of known issues."""
    data = content if isinstance(content, bytes) else content.encode()
    what = shown or "`" + str(content).replace("\n", "; ") + "`"
    return Bad(f"--known: {what}", "check gather --known known.toml", {"known.toml": data})


def bundle(shown: str, change: Callable[[dict[str, Any]], Any]) -> Bad:
    """Return a damaged bundle."""
    changed = change(dict(BUNDLE))
    text = changed if isinstance(changed, (bytes, str)) else json.dumps(changed)
    data = text if isinstance(text, bytes) else text.encode()
    return Bad(f"replay: {shown}", "replay bundle", {"bundle/case.json": data})


FINISHED: dict[str, Any] = {
    "csa_spec_report": 3,
    "finished": True,
    "verdict": "conformant",
    "candidate": "gather",
    "profile": "smoke",
    "dtypes": ["float32"],
    "device": "cpu",
    "seed": 0,
    "environment": {},
    "results": [],
}


def compared(shown: str, head: object) -> Bad:
    """Return a report that cannot be compared with another."""
    text = head if isinstance(head, str) else json.dumps(head)
    files = {"base.json": json.dumps(FINISHED).encode(), "head.json": text.encode()}
    return Bad(f"compare: {shown}", "compare base.json head.json", files)


READY_INDEX = json.loads((READY / "index.json").read_text(encoding="utf-8"))
(SELECT,) = (file for file in READY_INDEX["files"] if file["stage"] == "select")
INPUTS_OF_SELECT = (READY / SELECT["file"]).read_bytes()
ANSWER = SELECT["cases"][0]["name"]
OUT = load(INPUTS_OF_SELECT)[f"{ANSWER}.out"]


def judged(shown: str, change: Callable[[dict[str, Any]], Any]) -> Bad:
    """Return a damaged index of vectors; a change returns another file's content, or nothing."""
    index = json.loads(json.dumps({**READY_INDEX, "files": [SELECT]}))
    return _judged(shown, change(index) or index, save({ANSWER: OUT}))


def answered(shown: str, content: bytes) -> Bad:
    """Return a file of answers that cannot be judged."""
    return _judged(f"answers: {shown}", {**READY_INDEX, "files": [SELECT]}, content)


def _judged(shown: str, index: object, answers: bytes) -> Bad:
    files = {
        "v/index.json": _content(index),
        f"v/{SELECT['file']}": INPUTS_OF_SELECT,
        "a.safetensors": answers,
    }
    return Bad(f"judge: {shown}", "judge v a.safetensors", files)


def header(data: object) -> bytes:
    """Return a safetensors file that has a header alone."""
    text = _content(data)
    return len(text).to_bytes(8, "little") + text


def _content(data: object) -> bytes:
    return (
        data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode()
    )


FIGURES = json.loads((OFFICIAL / "index.json").read_text(encoding="utf-8"))[0]
RECORDED = (OFFICIAL / FIGURES["file"]).read_bytes()


def figures(shown: str, change: Callable[[dict[str, Any]], Any]) -> Bad:
    """Return a damaged index of recorded figures."""
    index = [json.loads(json.dumps(FIGURES))]
    files = {"v/index.json": _content(change(index[0]) or index), f"v/{FIGURES['file']}": RECORDED}
    return Bad(f"vectors: {shown}", "vectors v", files)


def recorded(shown: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Bad:
    """Return damaged tensors of recorded figures."""
    tensors = load(RECORDED)
    change(tensors)
    return Bad(
        f"vectors: {shown}",
        "vectors v",
        {"v/index.json": _content([FIGURES]), f"v/{FIGURES['file']}": save(tensors)},
    )


RECORDED_CASE = f"case{FIGURES['cases'][0]['case']}"


def replaced(tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> None:
    """Write a tensor of the first case in another dtype."""
    key = f"{RECORDED_CASE}.{name}"
    tensors[key] = torch.zeros(tensors[key].shape).to(dtype)


def first(data: dict[str, Any]) -> Any:
    """Return the first case of the first file of an index."""
    return data["files"][0]["cases"][0]


def declared(name: str) -> Bad:
    """Return a candidate of this module that declares something odd."""
    keys = ", ".join(f"{key}={value!r}" for key, value in DECLARATIONS[name].items())
    return Bad(f"Capabilities({keys})", f"check bad_inputs:{name} --stage attend --profile smoke")


def api(call: str) -> Bad:
    """Return a call from Python; it must raise an error."""
    return Bad(call, call, python=True)


DECLARATIONS: dict[str, dict[str, Any]] = {
    "no_dtype": {"internal_dtype": "banana"},
    "integer_dtype": {"internal_dtype": "int8"},
    "unknown_letter": {"limits": {"Z": 3}},
    "negative_limit": {"limits": {"S": -1}},
    "nan_limit": {"limits": {"S": math.nan}},
    "text_limit": {"limits": {"S": "4"}},
    "flag_limit": {"limits": {"S": True}},
    "limits_no_mapping": {"limits": 5},
    "limit_of_a_kind": {"limits": {("csa", "S"): 1}},
    "zero_multiple": {"multiples": {"S": 0}},
    "contradiction": {"least": {"S": 9}, "limits": {"S": 5}},
    "huge_least": {"least": {"S": 10**9}},
    "no_kind": {"kinds": set()},
    "text_of_dtypes": {"dtypes": "float32"},
    "unknown_dtype": {"dtypes": {"int8"}},
    "unknown_device": {"devices": {"tpu"}},
    "lacks_a_list": {"lacks": ["empty"]},
    "lacks_a_number": {"lacks": {("attend", "empty"): 5}},
    "lacks_unknown": {"lacks": {("softmax", "empty"): "why"}},
    "allowed_text": {"allowed": {"S": "abc"}},
    "endless_set": {"allowed": {"S": range(1, 10**30)}},
    "long_set": {"compress_ratios": range(1, 10**12)},
    "nan_tolerance": {"tie_tolerance": math.nan},
    "text_flag": {"gradients": "yes"},
    "lacks_misspelt": {"lacks": {("attend", "emty"): "why"}},
    "unknown_arrays": {"arrays": "no_such_module"},
    "arrays_without_dlpack": {"arrays": "json"},
}


def __getattr__(name: str) -> Any:
    """Return a candidate that declares what ``DECLARATIONS`` says."""
    if name not in DECLARATIONS:
        raise AttributeError(name)

    def attend(q: Any, kv: Any, indices: Any, sinks: Any, scale: float) -> Any:
        """It is never called."""

    attend.capabilities = Capabilities(**DECLARATIONS[name])  # type: ignore[attr-defined]
    return attend


ISSUE = 'candidate = "gather"\nstage = "attend"\nname = "empty"\nreason = "why"'


INPUTS: tuple[Bad, ...] = (
    # Sizes
    case("attend B=1000000 S=99999999"),
    case("select T=99999999 S=1000"),
    case("sliding rows=99999999"),
    case("csa H=1000000"),
    case("cache hca calls=4,repeat:1000000,repeat:1000000"),
    case("compressor m=99999999 blocks=1000"),
    case("index_scores T=99999999999999999999"),
    case("attend N={6000 digits}"),
    case("csa rows=1 seed=99999999999999999999"),
    case("csa rows=1 seed={6000 digits}"),
    case("hca rows=3@99999999999"),
    case("select start=99999999999"),
    # Cases
    case(""),
    case("softmax S=2"),
    case("attend S=two"),
    case("attend S=-1"),
    case("attend S=1.5"),
    case("attend S=1 S=2"),
    case("attend rows=3"),
    case("attend values="),
    case("attend dtype=int8"),
    case("attend mode=fast"),
    case("attend values=gausian"),
    case("attend s=3"),
    case("attend device=cuda:1"),
    case("atend S=2"),
    case("cache csa calls=2,rolback:1"),
    case("csa rows=3,,2"),
    case("csa R=3 D=4"),
    case("csa theta=nan"),
    case("hca yarn=4/64"),
    case("cache csa calls=rollback:1"),
    case("cache csa calls=2,jump:1"),
    case("attend \x1b[31m\u202e=1"),
    # Options
    check("gather --seed {6000 digits}"),
    check("gather --seed x"),
    check("gather --dtype ''"),
    check("gather --dtype float32,int8"),
    check("gather --profile fast"),
    check("gather --stage softmax"),
    check("gather --stage atttend"),
    check("gather --layer hc"),
    check("gather --profile smok"),
    check("gather --dtype BF16"),
    check("gather --device cuda:0"),
    check("gather --device gpu"),
    check("gather --isolate --time-limit nan"),
    check("gather --isolate --time-limit -1"),
    check("gather --report report.txt"),
    check("gather --report report"),
    check("gather --report {300 letters}.json"),
    check("gather --bundle {300 letters}"),
    check("gather --known {300 letters}"),
    check("nobody"),
    check("transformer"),
    check("no_such_module:attend"),
    check("csa_spec.candidates.gather:laod"),
    check("a/b.py:attend"),
    Bad("case gather 'attend' --check nothing", "case gather attend --check nothing"),
    Bad("case gather 'attend' --check memry", "case gather attend --check memry"),
    Bad(*["selftest --bug nothing"] * 2),
    Bad(*["selftest --bug rotates_the_leading_chanels"] * 2),
    # The file of known issues
    known("limitation = 5"),
    known('limitation = "text"'),
    known("[limitation]\na = 1"),
    known("limitation = [1, 2]"),
    known("[[known_issues]]"),
    known(f"[[known_issue]]\n{ISSUE}\nversions = 5", "`versions = 5`"),
    known(f'[[known_issue]]\n{ISSUE}\nversions = "five"', '`versions = "five"`'),
    known(f'[[known_issue]]\n{ISSUE}\nurls = "x"', '`urls = "x"`'),
    known("[[known_issue]]\nstage = 1", "a table that lacks most"),
    known(f"[[known_issue]]\n{ISSUE}".replace("empty", "emty"), '`name = "emty"`'),
    known("a = " + "[" * 9999, "lists in lists, 9,999 deep"),
    known("a = " + "9" * 6000, "a number of 6,000 digits"),
    known("[[known_issue"),
    known(b"\xff\xfe", "no UTF-8"),
    known("", "an empty file"),
    known(b" " * (17 << 20), "17 MB"),
    Bad("--known: a folder", "check gather --known ."),
    Bad("--known: no such file", "check gather --known nothing.toml"),
    # Bundles
    bundle("a module that the bundle names", lambda data: data | {"candidate": "payload:select"}),
    bundle("truncated", lambda data: json.dumps(data)[:60]),
    bundle("empty", lambda data: ""),
    bundle("a list", lambda data: [data]),
    bundle("nested 10,000 deep", lambda data: "[" * 10_000),
    bundle("no UTF-8", lambda data: b"\x00\xff"),
    bundle("no case", lambda data: {key: data[key] for key in data if key != "case_line"}),
    bundle("a number as candidate", lambda data: data | {"candidate": 3}),
    bundle("a case that is none", lambda data: data | {"case_line": "softmax S=2"}),
    bundle("a case of 20 digits", lambda data: data | {"case_line": f"attend N={'9' * 20}"}),
    bundle("a number of 6,000 digits", lambda data: '{"csa_spec_bundle": ' + "9" * 6000 + "}"),
    bundle("a newer version", lambda data: data | {"csa_spec_bundle": 9}),
    bundle("true as version", lambda data: data | {"csa_spec_bundle": True}),
    bundle("an unknown check", lambda data: data | {"check": "nothing"}),
    Bad("replay: a folder without a bundle", "replay ."),
    Bad("replay: no such folder", "replay nothing"),
    Bad("replay: a name of 300 letters", "replay {300 letters}"),
    # Reports that are compared
    compared("truncated", json.dumps(FINISHED)[:60]),
    compared("a list", [FINISHED]),
    compared("no report", {"results": []}),
    compared("another version", FINISHED | {"csa_spec_report": 4}),
    compared("not finished", FINISHED | {"finished": False, "stopped": "interrupted by SIGINT"}),
    compared("no results", {key: FINISHED[key] for key in FINISHED if key != "results"}),
    compared("a number as result", FINISHED | {"results": [5]}),
    Bad("compare: no such file", "compare nothing.json nothing.json"),
    Bad("compare: one file", "compare nothing.json"),
    Bad("compare: a name of 300 letters", "compare {300 letters} {300 letters}"),
    # Test vectors and answers to them
    judged("no JSON", lambda data: "{"),
    judged("nested 10,000 deep", lambda data: "[" * 10_000),
    judged("a number of 6,000 digits", lambda data: '{"format": ' + "9" * 6000 + "}"),
    judged("no UTF-8", lambda data: b"\xff\xfe"),
    judged("17 MB", lambda data: b" " * (17 << 20)),
    judged("recorded figures", lambda data: [FIGURES]),
    judged("a newer version", lambda data: data.update(version=9)),
    judged("true as version", lambda data: data.update(version=True)),
    judged("no files", lambda data: data.pop("files") and None),
    judged("an empty list of files", lambda data: data.update(files=[])),
    judged("a number as files", lambda data: data.update(files=5)),
    judged("null as file", lambda data: data.update(files=[None])),
    judged("text as cases", lambda data: data["files"][0].update(cases="abc")),
    judged("no cases", lambda data: data["files"][0].update(cases=[])),
    judged("a number as name", lambda data: first(data).update(name=3)),
    judged("a case that is listed twice", lambda data: data["files"][0]["cases"].append(first(data))),
    judged("a file of another folder", lambda data: data["files"][0].update(file="../x.safetensors")),
    judged("a file named with a newline", lambda data: data["files"][0].update(file="x\x1b[31m\n")),
    judged("a file that is not there", lambda data: data["files"][0].update(file="x.safetensors")),
    judged("an unknown stage", lambda data: data["files"][0].update(stage="selekt")),
    judged("an unknown dtype", lambda data: data["files"][0].update(dtype="int8")),
    judged("a layer kind of a stage without", lambda data: data["files"][0].update(variant="csa")),
    judged("a case that is none", lambda data: first(data).update(case="softmax S=2")),
    judged("a case of 746 GiB", lambda data: first(data).update(case="select T=99999999 S=1000")),
    judged("a case of another stage", lambda data: first(data).update(case="attend S=2")),
    judged("other inputs", lambda data: first(data).update(case="select S=2 T=3")),
    Bad("judge: no such folder", "judge nothing nothing"),
    Bad("judge: a name of 300 letters", "judge {300 letters} nothing"),
    Bad("judge: a folder without an index", "judge . nothing"),
    answered("an empty file", b""),
    answered("truncated", save({ANSWER: OUT})[:-5]),
    answered("a header of 2^63 bytes", b"\xff" * 7 + b"\x7f"),
    answered("a header nested 10,000 deep", header("[" * 10_000)),
    answered("an unknown dtype", header({ANSWER: {"dtype": "Z9", "shape": [0], "data_offsets": [0, 0]}})),
    answered(
        "a shape of 10^18", header({ANSWER: {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 0]}})
    ),
    answered("a misspelt case", save({ANSWER.replace("select", "selct"): OUT})),
    answered("another name", save({"banana": OUT})),
    answered("none", save({})),
    Bad("judge: answers: no such file", "judge v nothing", judged("", lambda data: None).files),
    Bad("judge: answers: 300 letters", "judge v {300 letters}", judged("", lambda data: None).files),
    Bad(
        "judge: answers: an empty folder", "judge v v2", {**judged("", lambda data: None).files, "v2/x": b""}
    ),
    # Vectors to write
    *(
        Bad(*[f"vectors --write v {options}"] * 2)
        for options in (
            "--stage atttend",
            "--stage ''",
            "--dtype int8",
            "--layer hc",
            "--cases 0",
            "--cases 1000000000",
            "--cases {6000 digits}",
            "--cases 3 --catalogue",
            "--stage attend --attend gather",
        )
    ),
    Bad("vectors --write a\0b", "", words=("vectors", "--write", "a\0b", "--stage", "select")),
    Bad("vectors --write: a name of 300 letters", "vectors --write {300 letters}"),
    Bad("vectors --write: a file", "vectors --write v", {"v": b""}),
    Bad("vectors --write: a device in the place of a folder", "vectors --write /dev/null/v"),
    Bad(
        "vectors --write: a folder in the place of a file",
        "vectors --write v --stage index_scores",
        {"v/index_scores-float32.safetensors/x": b""},
    ),
    # Recorded figures
    figures("no JSON", lambda data: "{"),
    figures("nested 10,000 deep", lambda data: "[" * 10_000),
    figures("a number of 6,000 digits", lambda data: "9" * 6000),
    figures("an empty list", lambda data: "[]"),
    figures("null as file", lambda data: "[null]"),
    figures("vectors to judge", lambda data: READY_INDEX),
    figures("no cases", lambda data: data.update(cases=[])),
    figures("a case that is not there", lambda data: data["cases"][0].update(case=10**30)),
    figures("a file of another folder", lambda data: data.update(file="../x")),
    figures("a file that is not there", lambda data: data.update(file="x.safetensors")),
    figures("an unknown kind of layer", lambda data: data["geometry"].update(kind="csb")),
    figures("a theta of 400 digits", lambda data: data["geometry"].update(theta=10**400)),
    figures("a norm_eps of 400 digits", lambda data: data["geometry"].update(norm_eps=10**400)),
    figures("text as yarn", lambda data: data["geometry"].update(yarn="abc")),
    figures("a window of 0", lambda data: data["geometry"].update(window=0)),
    recorded("no input", lambda tensors: tensors.__delitem__(f"{RECORDED_CASE}.x")),
    recorded("complex inputs", lambda tensors: replaced(tensors, "x", torch.complex64)),
    recorded("complex indices", lambda tensors: replaced(tensors, "core.idx", torch.complex64)),
    recorded("indices in uint16", lambda tensors: replaced(tensors, "core.idx", torch.uint16)),
    Bad("vectors: no such folder", "vectors nothing"),
    Bad("vectors: a name of 300 letters", "vectors {300 letters}"),
    Bad("vectors: a folder without an index", "vectors ."),
    Bad("vectors: --cases without --write", "vectors . --cases 3"),
    # Declarations
    *map(declared, DECLARATIONS),
    # From Python
    api('csa_spec.check("gather", profile=5)'),
    api('csa_spec.check("gather", seed="x")'),
    api('csa_spec.check("gather", dtype="")'),
    api('csa_spec.check("gather", isolate=True, time_limit=math.nan)'),
    api('csa_spec.check("gather", known=5)'),
    api("csa_spec.check(5)"),
    api("csa_spec.check(atttend=len)"),
    api('csa_spec.check("gather", profil="smoke")'),
    api('csa_spec.check_case("gather", 5)'),
    api('csa_spec.LayerCase(kind="csa", window="wide")'),
)


def outcome(bad: Bad) -> tuple[int, str]:
    """Return exit code and sentence, 2 for an error in Python; run it in a folder that has its files alone."""
    command = bad.command.replace("{6000 digits}", "9" * 6000).replace("{300 letters}", "a" * 300)
    if bad.python:
        try:
            eval(command, {"csa_spec": csa_spec, "math": math})
        except (csa_spec.UsageError, csa_spec.CandidateError, ValueError) as error:
            return 2, str(error)
        return 0, ""
    with _folder(bad.files), _streams() as (out, err):
        try:
            code = main(bad.words or shlex.split(command))
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    told = err.getvalue() or out.getvalue().split("\n1 bundle: ")[0]
    last = told.strip().splitlines()[-1] if told.strip() else ""
    last = last.replace("a" * 300, "{300 letters}")
    return code, last.removeprefix("csa-spec").removeprefix(": ").strip()


@contextlib.contextmanager
def _folder(files: Mapping[str, bytes]) -> Iterator[None]:
    path, before = list(sys.path), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            place = Path(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path


@contextlib.contextmanager
def _streams() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def rows() -> Iterator[tuple[str, int, str]]:
    """Yield input, exit code and sentence, for a table."""
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    for bad, sentence in zip(INPUTS, sentences[1::2], strict=True):
        yield bad.shown, 2, sentence.strip()


SENTENCES = Path(__file__).with_suffix(".txt")

if __name__ == "__main__":
    lines = []
    for bad in INPUTS:
        code, sentence = outcome(bad)
        lines += [ascii(bad.shown)[1:-1], f"    {sentence}"]
        assert code == 2, (bad.shown, code, sentence)
    if "--write" in sys.argv:
        SENTENCES.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        print(*lines, sep="\n")
