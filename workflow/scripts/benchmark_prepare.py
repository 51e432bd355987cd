"""Adapts rule benchmark_prepare: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "prepare",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"dataset": snakemake.params.dataset},
    log=snakemake.log[0],
)
