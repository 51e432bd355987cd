"""The errors a user can meet, each with what was expected, what was found and the remedy."""

from __future__ import annotations

from pathlib import Path


class TomolineError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(TomolineError, ValueError):
    """Something given by the user cannot be used.

    Parameters
    ----------
    source:
        The file, configuration key or argument at fault.
    expected, found, remedy:
        Plain sentences (no trailing full stop needed) that a microscopist understands.
    """

    def __init__(self, source: str | Path, *, expected: str, found: str, remedy: str) -> None:
        self.source = str(source)
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(f"{source}: expected {expected}; found {found}. Remedy: {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.source, self.expected, self.found, self.remedy))


class DeviceError(TomolineError, RuntimeError):
    """The compute device that was asked for is not there or ran out of memory for good."""


class ToolError(TomolineError, RuntimeError):
    """An external program (IMOD, SLURM) is missing, too old, or failed."""


def _rebuild(
    kind: type[InputError], source: str, expected: str, found: str, remedy: str
) -> InputError:
    return kind(source, expected=expected, found=found, remedy=remedy)
