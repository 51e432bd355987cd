"""Adapts rule combine_picks: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "combine_picks",
    inputs={
        "picks": snakemake.input.picks,
        "facts": snakemake.params.facts,
        "stars": snakemake.params.stars,
    },
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"dataset": snakemake.params.dataset},
    log=snakemake.log[0],
)
