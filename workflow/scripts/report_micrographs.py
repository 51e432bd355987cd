"""Adapts rule report_micrographs: its files, settings and log to one call of the library."""

from tomoline.stages import execute

given = dict(snakemake.params.items())
execute(
    "report_micrographs",
    inputs={
        "picks": snakemake.input.picks,
        "facts": given.pop("facts"),
        "pictures": given.pop("pictures"),
    },
    outputs=dict(snakemake.output.items()),
    settings=given.pop("settings"),
    params=given,
    log=snakemake.log[0],
)
