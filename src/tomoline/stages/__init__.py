"""The stages of the line, one module a rule: `run(inputs, outputs, *, settings, ...)`.

A stage module has `SETTINGS`, the group of settings it reads, or None. `execute` is the one door
through which the workflow's scripts enter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from logging import Logger
from pathlib import Path
from typing import Any, NamedTuple

from tomoline.errors import TomolineError
from tomoline.io.atomic import remove_unfinished
from tomoline.log import job_log
from tomoline.settings import validated
from tomoline.stages.served import ServerError, folder_for, hand_over


class Failure(NamedTuple):
    """What a stage failed of, and whether its log and the terminal have it already."""

    error: Exception
    logged: bool

    @property
    def text(self) -> str:
        """The error in a line."""
        return f"{type(self.error).__name__}: {self.error}"


def execute(
    stage: str,
    *,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, str],
    log: str | Path | None,
    settings: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> None:
    """Run one stage with its log; end the process with status 1 if it fails.

    What a killed attempt has left of the outputs is removed first. The log is replaced. Its last
    line is `... finished <stage>` or, after a failure, `ERROR <type>: <message>`, which
    `tomoline status` and the report show; an error that this package did not foresee is preceded
    by its traceback. In an allocation with a GPU, networks are run by a process that is kept for it
    (`tomoline.warm`); where that fails, here.
    """
    request: dict[str, Any] = {
        "stage": stage, "inputs": inputs, "outputs": outputs, "log": log, "settings": settings,
        "params": params,
    }  # fmt: skip
    warning = ""
    folder = folder_for(stage, settings)
    if folder is not None:
        try:
            answer = hand_over(folder, request)
        except ServerError as error:
            warning = f"the process that keeps networks is not used: {error}"
        else:
            _end_if_failed(answer.failed, logged=answer.logged)
            return
    failure = attempt(**request, warning=warning)
    if failure is not None:
        _end_if_failed(failure.text, logged=failure.logged)


def _end_if_failed(failed: str, *, logged: bool) -> None:
    if failed and not logged:
        print(f"ERROR {failed}", file=sys.stderr)
    if failed:
        sys.exit(1)


def attempt(
    stage: str,
    *,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, str],
    log: str | Path | None,
    settings: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    warning: str = "",
) -> Failure | None:
    """Run one stage with its log in this process; what it failed of. `warning` is logged first."""
    arguments = dict(params or {})
    started = False
    try:
        if log is not None:  # a new file: an attempt whose driver was killed may write to the old
            Path(log).unlink(missing_ok=True)
        with job_log(log) as logger:
            started = True
            if warning:
                logger.warning("%s", warning)
            try:
                _clear(outputs, logger)
                module = import_module(f"tomoline.stages.{stage}")
                if module.SETTINGS is not None:
                    arguments["settings"] = validated(
                        module.SETTINGS, settings or {}, source=f"settings of {stage}"
                    )
                module.run(inputs, outputs, **arguments)
            except TomolineError:
                raise
            except Exception:
                logger.exception("unforeseen error in stage %s", stage)
                raise
            logger.info("finished %s", stage)
    except Exception as error:
        return Failure(error, logged=started)
    return None


def _clear(outputs: Mapping[str, str], logger: Logger) -> None:
    """Remove what killed attempts at this stage have left, which can be as large as its outputs."""
    for path in outputs.values():
        for name in remove_unfinished(path):
            logger.info("removed %s, left by an attempt that was killed", Path(path).parent / name)
