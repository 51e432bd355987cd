"""Adapts rule simulate_demo: its files and log to one call of the library."""

from tomoline.stages import execute

execute(
    "simulate_demo",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    log=snakemake.log[0],
)
