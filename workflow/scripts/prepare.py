"""Adapts rule prepare: its files, settings and log to one call of the library."""

from tomoline.stages import execute

# The tomogram comes as a parameter, because as an input it is empty when its file has gone.
execute(
    "prepare",
    inputs={"tomogram": snakemake.params.tomogram, "model": snakemake.input.model},
    outputs=dict(snakemake.output.items()),
    settings=snakemake.params.settings,
    params={"dataset": snakemake.params.dataset, "axes": snakemake.params.axes},
    log=snakemake.log[0],
)
