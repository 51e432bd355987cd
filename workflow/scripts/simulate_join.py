"""Adapts rule simulate_join: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "simulate_subtomograms",
    inputs={"parts": list(snakemake.input.parts)},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    log=snakemake.log[0],
)
