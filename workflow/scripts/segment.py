"""Adapts rule segment: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "segment",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"shard": snakemake.params.shard},
    log=snakemake.log[0],
)
