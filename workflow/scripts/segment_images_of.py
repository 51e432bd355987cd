"""Adapts rule segment_images_of: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "segment_images",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    log=snakemake.log[0],
)
