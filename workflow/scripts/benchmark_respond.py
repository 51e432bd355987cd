"""Adapts rule benchmark_respond: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "benchmark_respond",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        "tomogram": snakemake.params.tomogram,
        "work": snakemake.params.work,
        "threads": snakemake.threads,
    },
    log=snakemake.log[0],
)
