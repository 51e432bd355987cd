"""Adapts rule compare_images: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "compare_images",
    inputs={"cards": list(snakemake.input.cards)},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    log=snakemake.log[0],
)
