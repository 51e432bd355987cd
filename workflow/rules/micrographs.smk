# In: micrographs as given, and a picker. Out: each micrograph's picks; a data set's files for other
# programs and its page. Also the training of a picker (`snakemake train_picker`).


rule mask_micrograph:
    input:
        image=lambda wildcards: micrograph_row(wildcards).path,
        card=f"{model_path(CONFIG.micrographs.mask_model or 'none', CONFIG.models.folder)}/card.yaml",
    output:
        mask=f"{MICROGRAPH}/mask.png",
        probability=f"{MICROGRAPH}/mask_probability.png",
        summary=f"{MICROGRAPH}/mask.json",
    log:
        f"{MICROGRAPH}/logs/mask_micrograph.log",
    benchmark:
        f"{MICROGRAPH}/benchmarks/mask_micrograph.jsonl"
    wildcard_constraints:
        dataset=MICROGRAPH_NAMES,
    group:
        "pick"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    resources:
        **gpu_of(CONFIG.micrographs),
        mem_mb=known(micrograph_memory),
        runtime=lambda wildcards, attempt: 5 * attempt,
    params:
        settings=segmenter_settings,
    script:
        "../scripts/mask_micrograph.py"


rule pick:
    input:
        given=given_micrograph,
        mask=made_mask,
        card=lambda wildcards: f"{micrograph_run().model.as_posix()}/card.yaml",
    output:
        picks=f"{MICROGRAPH}/picks.csv",
        facts=f"{MICROGRAPH}/micrograph.json",
        picture=f"{MICROGRAPH}/micrograph.png",
        star=f"{MICROGRAPH}/picks.star",
        box=f"{MICROGRAPH}/picks.box",
    log:
        f"{MICROGRAPH}/logs/pick.log",
    benchmark:
        f"{MICROGRAPH}/benchmarks/pick.jsonl"
    wildcard_constraints:
        dataset=MICROGRAPH_NAMES,
    group:
        "pick"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    resources:
        **gpu_of(CONFIG.micrographs),
        mem_mb=known(micrograph_memory),
        runtime=lambda wildcards, attempt: 5 * attempt,
        bundle=BUNDLE_MOST,
    params:
        settings=settings_of(
            "micrographs", without={"dialects", "pictures", "mask_model"}
        ),
        dataset=known(lambda wildcards: micrograph_run().dataset(wildcards.dataset)),
        path=known(lambda wildcards: micrograph_row(wildcards).path),
        mask=mask_of,
    script:
        "../scripts/pick.py"


rule combine_picks:
    input:
        picks=of_micrographs("picks.csv"),
    output:
        **PICK_FILES,
    log:
        f"{DATASET}/logs/combine_picks.log",
    wildcard_constraints:
        dataset=MICROGRAPH_NAMES,
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1500,
        runtime=20,
    params:
        facts=of_micrographs("micrograph.json"),
        stars=of_micrographs("picks.star"),
        dataset=known(lambda wildcards: micrograph_run().dataset(wildcards.dataset)),
        settings={},
    script:
        "../scripts/combine_picks.py"


rule report_micrographs:
    input:
        picks=of_micrographs("picks.csv"),
    output:
        page=report(
            f"{DATASET}/report/summary.html",
            caption=workflow.current_basedir.join("../report/dataset.rst"),
            category="Micrographs",
            labels={"data set": "{dataset}", "page": "all micrographs"},
        ),
        table=f"{DATASET}/report/summary.csv",
        evaluation=f"{DATASET}/report/evaluation.json",
    log:
        f"{DATASET}/logs/report_micrographs.log",
    wildcard_constraints:
        dataset=MICROGRAPH_NAMES,
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1500,
        runtime=20,
    params:
        facts=of_micrographs("micrograph.json"),
        pictures=of_micrographs("micrograph.png"),
        truths=lambda wildcards: micrograph_run().truths(wildcards.dataset),
        left_out=lambda wildcards: micrograph_run().listed_only(wildcards.dataset),
        dataset=known(lambda wildcards: micrograph_run().dataset(wildcards.dataset)),
        settings=settings_of("micrographs"),
    script:
        "../scripts/report_micrographs.py"


rule train_picker:
    input:
        [source.folder for source in CONFIG.train_picker.sources.values()],
    output:
        card=f"{PICKER}/card.yaml",
        weights=f"{PICKER}/weights.safetensors",
        curves=f"{PICKER}/curves.jsonl",
    log:
        f"{PICKER}/logs/train_picker.log",
    benchmark:
        f"{PICKER}/benchmarks/train_picker.jsonl"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 16
    resources:
        **gpu_of(CONFIG.train_picker),
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=1440,
    params:
        settings=settings_of("train_picker"),
        work=f"{PICKER}/checkpoints",
        models=CONFIG.models.folder,
    script:
        "../scripts/train_picker.py"
