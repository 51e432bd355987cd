"""Adapts rule train_images_of: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "train_images",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"network": snakemake.params.network, "work": snakemake.params.work},
    log=snakemake.log[0],
)
