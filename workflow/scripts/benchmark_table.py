"""Adapts rule benchmark_table: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "benchmark_table",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"title": snakemake.wildcards.benchmark, "labels": snakemake.params.labels},
    log=snakemake.log[0],
)
