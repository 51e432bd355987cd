"""Adapts rule train_picker: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "train_picker",
    inputs={},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"work": snakemake.params.work, "models": snakemake.params.models},
    log=snakemake.log[0],
)
