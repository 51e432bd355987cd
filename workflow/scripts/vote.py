"""Adapts rule vote: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "vote",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"tomogram": snakemake.params.tomogram, "dataset": snakemake.params.dataset},
    log=snakemake.log[0],
)
