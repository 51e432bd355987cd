"""Adapts rule compare_trainings: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "compare_trainings",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    params={"comparisons": snakemake.params.comparisons},
    log=snakemake.log[0],
)
