"""Adapts rule merge: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "merge",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"sifted_from": snakemake.params.sifted_from},
    log=snakemake.log[0],
)
