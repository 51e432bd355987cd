"""Adapts rule activation: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "activation",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        "tomogram": snakemake.params.tomogram,
        "dataset": snakemake.params.dataset,
        "evaluate": snakemake.params.evaluate,
        "tilt_series": snakemake.params.tilt_series,
    },
    log=snakemake.log[0],
)
