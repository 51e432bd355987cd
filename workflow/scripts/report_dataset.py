"""Adapts rule report_dataset: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "report_dataset",
    inputs={**snakemake.params.files, "cards": snakemake.input.cards},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        "dataset": snakemake.params.dataset,
        "refused": snakemake.params.refused,
        "config": snakemake.params.config,
    },
    log=snakemake.log[0],
)
