"""Adapts rule pick: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "pick",
    inputs={"card": snakemake.input.card},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        "micrograph": snakemake.wildcards.micrograph,
        "path": snakemake.params.path,
        "dataset": snakemake.params.dataset,
        "mask": snakemake.params.mask,
    },
    log=snakemake.log[0],
)
