"""Adapts rule prepare: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "prepare",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"dataset": snakemake.params.dataset, "axes": snakemake.params.axes},
    log=snakemake.log[0],
)
