# In: density maps. Out: simulated tomograms with their truth in SHREC's layout, to train on
# (`snakemake simulate`), and the two that the demo is made of (`snakemake simulate_demo`).

DENSITIES = "resources/densities"
SIMULATED = f"results/simulated/{CONFIG.simulate.name}"


rule simulate:
    input:
        [
            f"{SIMULATED}/model_{k}/particle_locations.txt"
            for k in range(1, CONFIG.simulate.tomograms + 1)
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
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=60,
    params:
        settings=settings_of("simulate", without="tomograms"),
        number=lambda wildcards: int(wildcards.number),
    script:
        "../scripts/simulate_one.py"


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
