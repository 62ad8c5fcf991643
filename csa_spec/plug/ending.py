"""How a process ended, in words. Without torch: the process that supervises a run imports this."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from types import FrameType

Frame = tuple[str, int, str]
"""File, line and function."""
_CALL = str(Path(__file__).with_name("call.py"))
"""The file that calls the candidate: what is inside of its frames is the candidate's"""


def cause_of_death(status: int) -> str:
    """Put the status that ``waitpid`` returns into words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended by {name}" + (" (often the out-of-memory killer)" if -code == signal.SIGKILL else "")


def candidates_frames(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Of frames, the innermost first, return the candidate's: those inside of the call, or of the import."""
    return takewhile(
        lambda frame: frame[0] != _CALL and not frame[0].startswith("<frozen importlib"), frames
    )


def place_of(frames: Iterable[Frame]) -> str:
    """Name the three innermost frames of the candidate: ", in f (a.py:3) < g (a.py:9)"; "" if there is none."""
    innermost = islice(candidates_frames(frames), 3)
    shown = [f"{name} ({os.path.basename(file)}:{line})" for file, line, name in innermost]
    return f", in {' < '.join(shown)}" if shown else ""


def no_answer(seconds: float, place: str) -> str:
    """Say that a call did not return in time, and where it was."""
    return f"no answer within {seconds:g} s{place}"


def place_in_dump(dump: str) -> str:
    """Name the place in what faulthandler wrote about the thread that a fatal signal hit."""
    current = dump.partition("Current thread")[2].partition("\n\n")[0]
    frames = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', current, re.MULTILINE)
    return place_of((file, int(line), name) for file, line, name in frames)


def frames_from(frame: FrameType | None) -> Iterator[Frame]:
    """Yield file, line and function of a frame and of its callers, the innermost first."""
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back
