"""Running the workflow on SLURM: what Snakemake's executor plugin leaves to be wished for.

`install` puts `tomoline_slurm.executor.Executor`, a subclass of snakemake-executor-plugin-slurm's,
in the place of that plugin's own, so that `executor: slurm` and all its documented options stay as
they are. The Snakefile calls it. Nothing in the package `tomoline` imports this one.
"""


def install() -> None:
    """Use our executor wherever `executor: slurm` is asked for."""
    from snakemake_interface_executor_plugins.registry import (  # noqa: PLC0415
        ExecutorPluginRegistry,
    )

    from tomoline_slurm.executor import Executor  # noqa: PLC0415

    ExecutorPluginRegistry().get_plugin("slurm").executor = Executor
