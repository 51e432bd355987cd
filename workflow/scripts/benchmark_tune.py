"""Adapts rule benchmark_tune: its files, settings and log to one call of the library."""

from tomoline.stages import execute

execute(
    "benchmark_tune",
    # One tomogram or several: always a list.
    inputs={key: [*snakemake.input.get(key)] for key in ("responses", "volumes", "transforms")}
    | {"densities": snakemake.input.densities},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"tomograms": snakemake.params.tomograms, "work": snakemake.params.work},
    log=snakemake.log[0],
)
