"""Adapts rule combine: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "combine",
    inputs=snakemake.params.files,
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        "dataset": snakemake.params.dataset,
        "tilt_series": snakemake.params.tilt_series,
    },
    log=snakemake.log[0],
)
