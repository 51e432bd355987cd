"""Adapts rule cluster_features: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "discover",
    inputs={**dict(snakemake.input.items()), "simulated": snakemake.params.simulated},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"title": snakemake.params.title, "tomograms": snakemake.params.tomograms},
    log=snakemake.log[0],
)
