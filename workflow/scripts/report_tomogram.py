"""Adapts rule report_tomogram: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "report_tomogram",
    inputs=dict(snakemake.input.items()),
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={
        "tomogram": snakemake.params.tomogram,
        "dataset": snakemake.params.dataset,
        "benchmarks": snakemake.params.benchmarks,
        "min_score": snakemake.params.min_score,
    },
    log=snakemake.log[0],
)
