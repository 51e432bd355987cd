# In: density maps, or a user's structures. Out: simulated micrographs with their truth, data set by
# data set (`snakemake simulate_micrographs`). Settings lie in config/simulate/micrographs.yaml.

MICROGRAPH_SETS = {
    f"results/simulated/{name}": s
    for name, s in CONFIG.simulate_micrographs.folders.items()
}


wildcard_constraints:
    micrograph_set="|".join(re.escape(folder) for folder in MICROGRAPH_SETS),


rule simulate_micrographs:
    input:
        [f"{folder}/conditions.json" for folder in MICROGRAPH_SETS],


rule simulate_micrographs_of:
    input:
        densities=ancient(DENSITIES),
    output:
        conditions="{micrograph_set}/conditions.json",
    log:
        "{micrograph_set}/logs/simulate.log",
    benchmark:
        "{micrograph_set}/benchmarks/simulate.jsonl"
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: int(
            (
                JOB_MB
                + 1000
                + 2e-4 * prod(MICROGRAPH_SETS[wildcards.micrograph_set].shape_yx)
            )
            * attempt
        ),
        runtime=lambda wildcards, attempt: (
            10 + MICROGRAPH_SETS[wildcards.micrograph_set].micrographs
        )
        * attempt,
    params:
        settings=lambda wildcards: MICROGRAPH_SETS[
            wildcards.micrograph_set
        ].model_dump(mode="json", exclude_defaults=True, exclude={"name", "sets"}),
    script:
        "../scripts/simulate_micrographs_of.py"
