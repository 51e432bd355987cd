"""Adapts rule finetune: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "finetune",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        key: snakemake.params[key]
        for key in ("tomograms", "truths", "tilt_series", "dataset", "work")
    },
    log=snakemake.log[0],
)
