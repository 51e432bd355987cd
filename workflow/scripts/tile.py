"""Adapts rule tile: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "tile",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"inference": snakemake.params.inference},
    log=snakemake.log[0],
)
