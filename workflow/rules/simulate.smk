# In: density maps. Out: simulated tomograms with their truth in SHREC's layout, to train on and to
# compare with (`snakemake simulate`), subtomograms with theirs (`snakemake
# simulate_subtomograms`), and the two tomograms that the demo is made of (`snakemake
# simulate_demo`). Sets of settings lie in config/simulate.

DENSITIES = "resources/densities"
SIMULATED = "{simulated}"


wildcard_constraints:
    simulated="|".join(re.escape(folder) for folder in SETS),


rule simulate:
    input:
        [
            f"{folder}/model_{k}/particle_locations.txt"
            for folder in SETS
            for k in numbers_of(folder)
        ],


rule simulate_one:
    input:
        densities=ancient(DENSITIES),
    output:
        reconstruction=f"{SIMULATED}/model_{{number}}/reconstruction.mrc",
        locations=f"{SIMULATED}/model_{{number}}/particle_locations.txt",
    log:
        f"{SIMULATED}/logs/simulate_{{number}}.log",
    benchmark:
        f"{SIMULATED}/benchmarks/simulate_{{number}}.jsonl"
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    threads: 2
    resources:
        mem_mb=simulation_memory,
        runtime=60,
    params:
        settings=simulation_settings,
        number=lambda wildcards: int(wildcards.number),
    script:
        "../scripts/simulate_one.py"


rule simulate_subtomograms:
    input:
        [f"{folder}/subtomograms.h5" for folder in SETS],


rule simulate_boxes:
    input:
        densities=ancient(DENSITIES),
    output:
        subtomograms=temp(f"{SIMULATED}/parts/{{number}}.h5"),
    log:
        f"{SIMULATED}/logs/boxes_{{number}}.log",
    benchmark:
        f"{SIMULATED}/benchmarks/boxes_{{number}}.jsonl"
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    threads: 2
    resources:
        mem_mb=simulation_memory,
        runtime=60,
    params:
        settings=simulation_settings,
        number=lambda wildcards: int(wildcards.number),
    script:
        "../scripts/simulate_boxes.py"


rule simulate_join:
    input:
        parts=lambda wildcards: [
            f"{wildcards.simulated}/parts/{k}.h5"
            for k in numbers_of(wildcards.simulated)
        ],
    output:
        subtomograms=f"{SIMULATED}/subtomograms.h5",
    log:
        f"{SIMULATED}/logs/join.log",
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=simulation_settings,
    script:
        "../scripts/simulate_join.py"


# The file of a set without variants lies where a tomogram's subtomograms would.
ruleorder: simulate_join > extract


rule simulate_demo:
    input:
        densities=ancient(DENSITIES),
    output:
        demo_01="results/simulated/demo/demo_01.mrc",
        demo_02="results/simulated/demo/demo_02.mrc",
    log:
        "results/simulated/demo/logs/simulate_demo.log",
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    threads: 2
    resources:
        mem_mb=6000,
        runtime=60,
    script:
        "../scripts/simulate_demo.py"
