# In: density maps, or simulated tomograms. Out: models with their cards, and the curves of their
# training (`snakemake train`). A training that was killed goes on from its last checkpoint.

TRAINED = f"results/models/{CONFIG.train.name}"
PARTS = (
    ("localizer", "classifier")
    if CONFIG.train.task == "joint"
    else (CONFIG.train.task,)
)


rule train:
    input:
        densities=ancient(DENSITIES),
        folders=training_folders,
    output:
        **{part: f"{TRAINED}-{part}/card.yaml" for part in PARTS},
        **{f"{part}_weights": f"{TRAINED}-{part}/weights.safetensors" for part in PARTS},
        curves=f"{TRAINED}/curves.jsonl",
        picture=f"{TRAINED}/curves.png",
    log:
        f"{TRAINED}/logs/train.log",
    benchmark:
        f"{TRAINED}/benchmarks/train.jsonl"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 16
    resources:
        **gpu_of(CONFIG.train),
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=1440,
    params:
        settings=settings_of("train"),
        work=f"{TRAINED}/checkpoints",
    script:
        "../scripts/train.py"
