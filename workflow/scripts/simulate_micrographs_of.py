"""Adapts rule simulate_micrographs_of: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "simulate_micrographs",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    log=snakemake.log[0],
)
