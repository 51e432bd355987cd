"""Adapts rule benchmark_train: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "train",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"work": snakemake.params.work},
    log=snakemake.log[0],
)
