# In: density maps, or simulated tomograms or subtomograms. Out: models with their cards, and the
# curves of their training (`snakemake train`); from subtomograms also figures on those held out. A
# training that was killed goes on from its last checkpoint.

TRAINED = f"results/models/{CONFIG.train.name}"
PARTS = (
    ("localizer", "classifier")
    if CONFIG.train.task == "joint"
    else (CONFIG.train.task,)
)
FIGURES = (
    {"figures": f"{TRAINED}/figures.json"}
    if CONFIG.train.source == "subtomograms"
    else {}
)


rule train:
    input:
        densities=ancient(DENSITIES),
        folders=training_folders,
    output:
        **{part: f"{TRAINED}-{part}/card.yaml" for part in PARTS},
        **{f"{part}_weights": f"{TRAINED}-{part}/weights.safetensors" for part in PARTS},
        **FIGURES,
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
