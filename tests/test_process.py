"""The process of a command: what ends it, what interrupts it, what cannot be written. Nothing found is lost.

Faults of candidates that end the process are rows of the table in ``docs/faults.md``, tested in
``test_faults.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import csa_spec
from csa_spec.cli import main
from csa_spec.engine.failures import Failure
from csa_spec.plug.position import Ended, in_call

TESTS = Path(__file__).parent
CANDIDATES = """
import ctypes, time
from faults import right, zeros

def slow(*inputs):
    time.sleep(0.05)
    return zeros(*inputs) if inputs[2].shape[-1] > 20 else right(*inputs)

def stuck(*inputs):
    print("stuck", flush=True)
    ctypes.PyDLL(None).sleep(1000)  # holds the lock of the interpreter
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "slowly.py").write_text(CANDIDATES)
    return tmp_path


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start a check of an ``attend`` of the module above, or of ``faults``."""
    # A shell's background job may hand down an ignored SIGINT, and Python would keep it so.
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_module('csa_spec', run_name='__main__', alter_sys=True)"
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code, "check", *arguments, "--stage", "attend"],
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}, text=True,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        **{"stdout": subprocess.PIPE, **options},
    )  # type: ignore[call-overload]  # fmt: skip
    return process


def session(of: int) -> list[str]:
    """Return the commands of a session's processes, and of worker pools that they started, but for zombies."""
    lines = subprocess.run(
        ["ps", "-eo", "sid,ppid,stat,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line for line in lines if line.split()[0] == str(of) and line.split()[2][0] != "Z"]


def found_something(path: Path) -> bool:
    """Wait until a report says that something failed."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        if path.exists() and any(result["failures"] for result in json.loads(path.read_text())["results"]):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("number", "code", "isolate"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)]
)
def test_an_interrupted_run_reports_what_it_found(
    folder: Path, number: signal.Signals, code: int, isolate: bool
) -> None:
    """On the terminal and in every file, marked as not finished; and no worker is left."""
    files = ("--json", "r.json", "--html", "r.html", "--markdown", "r.md", "--bundle", "bundles")
    process = start("slowly:slow", *files, *["--isolate"] * isolate)
    try:
        assert found_something(folder / "r.json")
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert err.endswith(f"csa-spec: interrupted by {number.name}; the report is not finished\n")
    assert "FAILED attend: output matches the specification" in out
    assert "slowly:slow: NOT CONFORMANT for attend, unfinished\n" in out
    report = json.loads((folder / "r.json").read_text())
    assert (report["finished"], report["stopped"]) == (False, f"interrupted by {number.name}")
    for name in ("r.html", "r.md"):
        assert f"not finished: interrupted by {number.name}" in (folder / name).read_text()
    assert [(path / "README.md").exists() for path in (folder / "bundles").iterdir()] == [True]
    end = time.monotonic() + 20
    while session(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert session(process.pid) == []


def test_a_second_interrupt_ends_a_run_at_once() -> None:
    """Also one that cannot obey the first."""
    process = start("slowly:stuck")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.endswith("csa-spec: interrupted by SIGINT, and ended at once\n")


def test_a_run_whose_reader_leaves_writes_its_files(folder: Path) -> None:
    """``csa-spec check ... | head -1``: no complaint, and not the exit code of success."""
    with start("faults:right", "--profile", "smoke", "--json", "r.json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "checking attend float32 ...\n"
    assert process.returncode == 130
    assert json.loads((folder / "r.json").read_text())["verdict"] == "conformant"


def test_a_report_that_cannot_be_printed_is_no_success() -> None:
    """A full disk where stdout goes to."""
    with Path("/dev/full").open("w") as full:
        process = start("faults:right", "--profile", "smoke", stdout=full)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.endswith("csa-spec: the report could not be printed: no space left on device\n")


PLACES = {
    "nosuch/report": "there is no folder",
    "slowly.py/report": "there is no folder",
    ".": ". is not a file",
    "/dev/full": "/dev/full cannot be written: no space left on device",
    "/proc/report": "/proc/report cannot be written",
    "x" * 300: "file name too long",
}


@pytest.mark.parametrize("option", ["--json", "--html", "--markdown"])
@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_cannot_be_written_is_refused_at_once(
    option: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, before the candidate is imported; nothing is left behind."""
    before = set(os.listdir())
    assert main(["check", "nosuch:candidate", option, place]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"csa-spec: {option}: ")
    assert PLACES[place] in err
    assert set(os.listdir()) == before


def test_what_cannot_be_written_at_the_end_is_a_line_and_the_verdict_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder goes away during the run; the other files are written all the same."""
    Path("gone").mkdir()

    def removes(*inputs: object) -> None:
        if Path("gone").exists():
            for path in Path("gone").iterdir():
                path.unlink()
            Path("gone").rmdir()

    monkeypatch.setattr("faults.returns_nothing", removes)
    options = ["--json", "gone/r.json", "--html", "r.html", "--markdown", "gone/r.md"]
    assert (
        main(["check", "faults:returns_nothing", "--stage", "attend", "--profile", "smoke", *options]) == 1
    )
    out, err = capsys.readouterr()
    assert out.endswith("faults:returns_nothing: NOT CONFORMANT for attend\n")
    for name in ("--json: gone/r.json", "--markdown: gone/r.md"):
        assert f"csa-spec: {name} could not be written: no such file or directory\n" in err
    assert "not conformant" in Path("r.html").read_text()


def test_one_bundle_that_cannot_be_written_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says which and why; the exit code is the verdict's."""
    from csa_spec.bundle import write

    whole = write._record

    def record(failure: Failure, name: str, check: str, environment: object) -> object:
        if check == "specification":
            raise AssertionError("a mistake of ours")
        return whole(failure, name, check, environment)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "_record", record)
    options = ["--stage", "attend", "--profile", "smoke", "--bundle", "bundles"]
    assert main(["check", "faults:caches_by_shape", *options]) == 1
    everything = capsys.readouterr()
    assert everything.out.count("bundle: ") == len(list(Path("bundles").iterdir())) > 0
    lines = [line for line in everything.err.splitlines() if "--bundle" in line]
    assert lines
    assert all(line.endswith("could not be written: AssertionError: a mistake of ours") for line in lines)


def test_a_call_that_swallows_its_exit_is_a_fault_all_the_same() -> None:
    """And ``os._exit`` is itself again afterwards."""
    real = os._exit
    said = r"exited with status 0, in test_a_call"
    with pytest.raises(Ended, match=said), in_call(), contextlib.suppress(BaseException):
        os._exit(0)
    assert os._exit is real


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exits_with_0", "exited with status 0, in"),
        ("raises_exit", "GeneratorExit"),
        ("raises_base", "Unlucky"),
    ],
)
def test_python_survives_what_it_can_without_a_supervisor(name: str, said: str) -> None:
    """As the API and the pytest plugin do."""
    with pytest.raises(Failure, match=said):
        csa_spec.check_case(f"faults:{name}", "attend n=65")


def test_ctrl_c_is_no_failure_of_the_candidate() -> None:
    """Where Python raises KeyboardInterrupt for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.getsignal", lambda number: signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            csa_spec.check_case("faults:raises_interrupt", "attend n=65")
        patch.setattr("signal.getsignal", lambda number: signal.SIG_IGN)
        with pytest.raises(Failure, match="KeyboardInterrupt"):
            csa_spec.check_case("faults:raises_interrupt", "attend n=65")
