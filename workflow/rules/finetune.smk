# In: a data set's labels, its prepared tomograms and candidates, and models to start from. Out:
# models that have learnt them, and what that changed (`snakemake finetune`; docs/review.md).

TUNED = f"results/models/{CONFIG.finetune.name}"
# With another localizer the classifier's sift has to be another, so both are written.
TUNED_ROLES = (
    ("localizer", "classifier")
    if "localizer" in CONFIG.finetune.roles
    else ("classifier",)
)


rule finetune:
    input:
        localizer=lambda wildcards: start_model("localizer"),
        classifier=lambda wildcards: start_model("classifier"),
        densities=ancient(DENSITIES),
        labels=labelled_files("config/datasets/{dataset}_annotations/{tomogram}.csv"),
        transforms=labelled_files(rules.prepare.output.transform),
        volumes=labelled_files(rules.prepare.output.volume),
        candidates=labelled_files(rules.cluster.output.candidates),
    output:
        **{role: f"{TUNED}-{role}/card.yaml" for role in TUNED_ROLES},
        **{
            f"{role}_weights": f"{TUNED}-{role}/weights.safetensors"
            for role in TUNED_ROLES
        },
        figures=f"{TUNED}/finetune.json",
        page=f"{TUNED}/finetune.html",
    log:
        f"{TUNED}/logs/finetune.log",
    benchmark:
        f"{TUNED}/benchmarks/finetune.jsonl"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 16
    resources:
        **gpu_of(CONFIG.finetune),
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=240,
    params:
        settings=settings_of("finetune"),
        tomograms=lambda wildcards: [row.tomogram for row in tuned_from()[1]],
        truths=of_labelled("truth"),
        tilt_series=of_labelled("tilt_series"),
        dataset=lambda wildcards: run().dataset(tuned_from()[0]),
        work=f"{TUNED}/checkpoints",
    script:
        "../scripts/finetune.py"
