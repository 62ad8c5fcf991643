"""What of the process a call must leave as it is: read before, compared afterwards, and put back."""

from __future__ import annotations

import contextlib
import locale
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._device

from csa_spec.plug.generators import generators

Says = Callable[[Any, Any], str]
"""Names a change, given what was and what is; nothing where it is none after all."""


def _was_and_is(before: Any, after: Any) -> str:
    return f"it was {_shown(before)}, after the call it is {_shown(after)}"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a call must leave as it is."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    says: Says = _was_and_is
    of_imports: bool = False
    """Whether libraries set it when they are imported, which a call may do for the first time"""


class Watch:
    """Watches one call, from when it is made until :meth:`settle`.

    Parameters
    ----------
    unusual
        Whether to give the process unusual but legal values meanwhile, so that a call that sets what
        happens to be there already shows.
    """

    def __init__(self, unusual: bool = False) -> None:
        self._undo = _made_unusual() if unusual else {}
        self._modules = len(sys.modules)
        self._before = {name: _read(item) for name, item in ITEMS.items()}
        self._generators = generators()
        for generator in self._generators.values():
            generator.begin()

    def settle(self) -> dict[str, str]:
        """Put everything back; return what the call changed, by name, and how."""
        changed = {}
        imported = len(sys.modules) != self._modules
        for name, item in ITEMS.items():
            before, after = self._before[name], _read(item)
            if not _differ(before, after) or not (how := item.says(before, after)):
                continue
            if item.of_imports and imported:  # a library's doing, which later calls do not repeat
                _LEFT.setdefault(name, before)
                continue
            changed[name] = how
            _write(item, before)
        changed |= {name: how for name, generator in self._generators.items() if (how := generator.end())}
        for name, value in self._undo.items():
            _write(ITEMS[name], value)
        return changed


_LEFT: dict[str, Any] = {}
"""What was before calls that imported libraries, and so were not held to it"""


def _made_unusual() -> dict[str, Any]:
    """Set what calls may be blind to; return what it was."""
    before = {name: _read(ITEMS[name]) for name in (*_LEFT, *_UNUSUAL)}
    for name, value in before.items():
        _write(ITEMS[name], _LEFT.get(name, value))
        if name in _UNUSUAL:
            _write(ITEMS[name], _UNUSUAL[name](ITEMS[name].read()))
    return before


def _read(item: Item) -> Any:
    try:
        return item.read()
    except Exception as error:  # a working directory that is gone, flags that contradict each other
        return f"unreadable ({type(error).__name__})"


def _write(item: Item, value: Any) -> None:
    with contextlib.suppress(Exception):  # e.g. signal handlers outside of the main thread
        item.write(value)


def _differ(before: Any, after: Any) -> bool:
    try:
        return bool(before != after)
    except Exception:  # what a candidate put there compares in its own way
        return True


def _shown(value: Any) -> str:
    """Return a value as reports show it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ")"
    if isinstance(value, (int, float, str, type(None), torch.dtype, torch.device)):
        text = str(value).removeprefix("torch.") or "empty"
        return text if len(text) < 100 else f"{text[:100]}..."
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else f"a {type(value).__name__}"


# WHAT IS WATCHED


def _flag(owner: Any, name: str) -> Item:
    return Item(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _of_sys(name: str) -> Item:
    """An object of the interpreter: which one it is counts."""

    def says(before: Any, after: Any) -> str:
        return "" if before is after else f"it is {_shown(after)} after the call, and was {_shown(before)}"

    return Item(lambda: getattr(sys, name), lambda value: setattr(sys, name, value), says, of_imports=True)


_BY_LIBRARIES = ("TORCHINDUCTOR_", "TRITON_", "KMP_", "CUDA_MODULE_LOADING", "XLA_", "TF_")
"""Variables that compilers and devices add when they are first used, and then rely on."""


def _environment() -> dict[Any, Any]:
    return dict(vars(os.environ)["_data"])  # the mapping itself decodes each name: a hundred times slower


def _variables(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Any]:
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [name for name in differing if name in before or not _text(name).startswith(_BY_LIBRARIES)]


def _text(name: str | bytes) -> str:
    return os.fsdecode(name)


def _environment_says(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> str:
    def shown(values: Mapping[Any, Any], name: Any) -> str:
        return repr(_text(values[name])) if name in values else "not set"

    return "; ".join(
        f"{_text(name)} was {shown(before, name)}, after the call it is {shown(after, name)}"
        for name in _variables(before, after)[:3]
    )


def _set_environment(wanted: Mapping[Any, Any]) -> None:
    for name in _variables(wanted, _environment()):
        if name in wanted:
            os.environ[_text(name)] = _text(wanted[name])
        else:
            del os.environ[_text(name)]


def _list_says(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    added = [entry for entry in after if entry not in before]
    removed = [entry for entry in before if entry not in after]
    parts = [f"the call adds {_entry(added[0])}"] if added else []
    parts += [f"the call removes {_entry(removed[0])}"] if removed else []
    return " and ".join(parts) or "the call reorders it"


def _entry(entry: Any) -> str:
    if isinstance(entry, tuple):  # a warning filter: action, message, category, module, line
        return f"{entry[0]!r} for {getattr(entry[2], '__name__', entry[2])}"
    return repr(entry)[:100]


def _set_filters(filters: tuple[Any, ...]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    with warnings.catch_warnings():  # which makes the interpreter forget what it knew of the filters
        pass


def _set_path(path: tuple[str, ...]) -> None:
    sys.path[:] = path


def _logging() -> tuple[Any, ...]:
    root = logging.root
    return root.level, root.manager.disable, tuple(root.handlers)


def _set_logging(state: tuple[Any, ...]) -> None:
    root = logging.root
    root.setLevel(state[0])
    root.manager.disable = state[1]
    root.handlers[:] = state[2]


def _logging_says(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    names = ("the level", "the level of logging.disable", "the handlers")
    differing = [i for i in range(3) if before[i] != after[i]]
    return "; ".join(f"{names[i]}: {_was_and_is(before[i], after[i])}" for i in differing)


_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name))


def _set_handlers(handlers: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


_SMALLEST = 5e-324


def _flushes() -> bool:
    """Whether numbers below the smallest normal one count as zero; torch has no function that says so."""
    return _SMALLEST * 1.0 == 0


def _set_device(device: Any) -> None:
    torch.set_default_device(device)
    torch.utils._device.CURRENT_DEVICE = device  # where a with-statement was entered and never left


def _device_says(before: Any, after: Any) -> str:
    return _was_and_is(before or "cpu", after or "cpu")


def _inference(on: bool) -> None:
    guard = torch.inference_mode(on)
    guard.__enter__()
    _GUARDS.append(guard)  # the mode ends when it is collected


_GUARDS: list[Any] = []


def _modes() -> int:
    return torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()


def _pop_modes(wanted: int) -> None:
    """End modes that were entered and never left."""
    while _modes() > wanted:
        if torch._C._len_torch_dispatch_stack():
            torch.utils._python_dispatch._pop_mode()
        else:
            torch.overrides._pop_mode()  # type: ignore[no-untyped-call]


def _modes_say(before: int, after: int) -> str:
    return f"the call leaves {after - before} of them on" if after > before else "the call ends some"


def _autocast() -> tuple[Any, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _set_autocast(state: tuple[bool, ...]) -> None:
    for device, on in zip(("cpu", "cuda"), state, strict=True):
        torch.set_autocast_enabled(device, on)


def _printing() -> dict[str, Any]:
    return dict(vars(torch._tensor_str.PRINT_OPTS))


def _printing_says(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    differing = [name for name in before if before[name] != after.get(name)]
    return "; ".join(f"{name}: {_was_and_is(before[name], after.get(name))}" for name in differing)


def _functions_of(owner: Any, name: str) -> Item:
    """Every attribute of a module or class of torch that others may have replaced."""

    def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
        return [key for key, value in before.items() if callable(value) and after.get(key) is not value]

    def says(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
        replaced = [f"{name}.{key}" for key in differing(before, after)]
        return f"the call replaces {', '.join(replaced[:3])}" if replaced else ""

    def write(before: Mapping[str, Any]) -> None:
        for key in differing(before, vars(owner)):
            setattr(owner, key, before[key])

    return Item(lambda: vars(owner).copy(), write, says, of_imports=True)


ITEMS: dict[str, Item] = {
    # First what could disturb the reading of the others.
    "default device": Item(lambda: torch.utils._device.CURRENT_DEVICE, _set_device, _device_says),
    "modes of torch functions and operators": Item(_modes, _pop_modes, _modes_say),
    "inference mode": Item(torch.is_inference_mode_enabled, _inference),
    "grad mode": Item(torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": Item(torch.get_default_dtype, torch.set_default_dtype),
    "number of threads": Item(torch.get_num_threads, torch.set_num_threads),
    "float32 matmul precision": Item(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "TF32 in CUDA's products": _flag(torch.backends.cuda.matmul, "allow_tf32"),
    "TF32 in cuDNN": _flag(torch.backends.cudnn, "allow_tf32"),
    "cuDNN's benchmark mode": _flag(torch.backends.cudnn, "benchmark"),
    "cuDNN's deterministic mode": _flag(torch.backends.cudnn, "deterministic"),
    "flash attention": Item(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "deterministic mode": Item(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "anomaly mode": Item(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast": Item(_autocast, _set_autocast),
    "flush-denormal mode": Item(_flushes, torch.set_flush_denormal),
    "print options": Item(
        _printing, lambda options: vars(torch._tensor_str.PRINT_OPTS).update(options), _printing_says
    ),
    "functions of torch": _functions_of(torch, "torch"),
    "functions of torch.nn.functional": _functions_of(torch.nn.functional, "torch.nn.functional"),
    "methods of tensors": _functions_of(torch.Tensor, "torch.Tensor"),
    "working directory": Item(os.getcwd, os.chdir),
    "environment": Item(_environment, _set_environment, _environment_says, of_imports=True),
    "locale": Item(
        lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)
    ),
    "recursion limit": Item(sys.getrecursionlimit, sys.setrecursionlimit),
    "signal handlers": Item(lambda: tuple(map(signal.getsignal, _SIGNALS)), _set_handlers),
    "warning filters": Item(lambda: tuple(warnings.filters), _set_filters, _list_says, of_imports=True),
    "logging": Item(_logging, _set_logging, _logging_says, of_imports=True),
    "sys.path": Item(lambda: tuple(sys.path), _set_path, _list_says, of_imports=True),
    **{f"sys.{name}": _of_sys(name) for name in ("stdout", "stderr", "excepthook")},
}
"""In the order in which they are put back"""


class _NeverWarned(Warning):
    """Nobody warns of it, so a filter for it changes nothing."""


_UNUSUAL: dict[str, Callable[[Any], Any]] = {
    "number of threads": lambda threads: threads + 2,
    "grad mode": lambda on: not on,
    "recursion limit": lambda limit: limit + 50,
    "working directory": lambda path: max({os.sep, tempfile.gettempdir()} - {path}, key=len),
    "warning filters": lambda filters: (("default", None, _NeverWarned, None, 0), *filters),
    "logging": lambda state: (state[0] + 1, *state[1:]),
}
"""Values that change no answer, for which calls may be tried. Others could: dtypes, devices, variables"""
