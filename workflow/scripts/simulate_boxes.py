"""Adapts rule simulate_boxes: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "simulate_subtomograms",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"number": snakemake.params.number},
    log=snakemake.log[0],
)
