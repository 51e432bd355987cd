"""Adapts rule experiments_table: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "experiments_table",
    inputs={},
    outputs=dict(snakemake.output.items()),
    params={"experiments": snakemake.params.experiments},
    log=snakemake.log[0],
)
