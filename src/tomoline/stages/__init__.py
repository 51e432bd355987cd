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
from typing import Any

from tomoline.errors import TomolineError
from tomoline.io.atomic import remove_unfinished
from tomoline.log import job_log
from tomoline.settings import validated


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
    by its traceback.
    """
    arguments = dict(params or {})
    started = False
    try:
        if log is not None:  # a new file: an attempt whose driver was killed may write to the old
            Path(log).unlink(missing_ok=True)
        with job_log(log) as logger:
            started = True
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
    except Exception as error:  # once started, it is in the log and on the terminal already
        if not started:
            print(f"ERROR {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _clear(outputs: Mapping[str, str], logger: Logger) -> None:
    """Remove what killed attempts at this stage have left, which can be as large as its outputs."""
    for path in outputs.values():
        for name in remove_unfinished(path):
            logger.info("removed %s, left by an attempt that was killed", Path(path).parent / name)
