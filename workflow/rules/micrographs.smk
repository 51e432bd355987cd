# In: micrographs as given, and a picker. Out: each micrograph's picks; a data set's files for other
# programs and its page. Also the training of a picker (`snakemake train_picker`).

MICROGRAPH = "results/{dataset}/{micrograph}"
PICKER = f"results/models/{CONFIG.train_picker.name}"


wildcard_constraints:
    micrograph="[A-Za-z0-9][A-Za-z0-9._-]*",


@cache
def micrograph_run():
    """The data sets of micrographs, checked."""
    return refused(check_micrographs, CONFIG, thorough=workflow.is_main_process)


def micrograph_row(wildcards):
    """The micrograph's row of its data set's sheet."""
    claimed()
    return micrograph_run().row(wildcards.dataset, wildcards.micrograph)


@known
def given_micrograph(wildcards):
    """The files a micrograph is picked by. One that is gone fails in its own job, alone."""
    row = micrograph_row(wildcards)
    return [path for path in (row.path, row.mask) if path and Path(path).exists()]


@known
def mask_of(wildcards):
    """The mask a micrograph is picked with: the sheet's, else the segmenter's; empty for none."""
    row = micrograph_row(wildcards)
    if row.mask or not CONFIG.micrographs.mask_model:
        return row.mask
    return rules.mask_micrograph.output.probability.format(**wildcards)


@known
def made_mask(wildcards):
    """The mask, where the workflow has to make it first."""
    made = CONFIG.micrographs.mask_model and not micrograph_row(wildcards).mask
    return [mask_of(wildcards)] if made else []


@known
def segmenter_settings(wildcards):
    """How a micrograph's contamination is looked for."""
    dataset = micrograph_run().datasets[wildcards.dataset]
    return {
        "model": CONFIG.micrographs.mask_model,
        "pixel_size_angstrom": dataset.pixel_size_angstrom,
        "invert": dataset.contrast == "bright",
        "device": CONFIG.micrographs.device,
    }


def of_micrographs(name):
    """Input function: a file of every micrograph of a data set that is run."""

    def paths(wildcards):
        rows = micrograph_run().rows[wildcards.dataset]
        return [f"results/{wildcards.dataset}/{row.micrograph}/{name}" for row in rows]

    return paths


def micrograph_memory(wildcards, attempt):
    """Memory by the size of a micrograph: some copies of it, and the network's maps."""
    row = micrograph_row(wildcards)
    pixels = (row.ny or 8000) * (row.nx or 8000)
    return int((JOB_MB + 1500 + 60 * pixels / 1e6) * attempt)


def picked():
    """All that a run is to leave behind of micrographs."""
    wanted = []
    for dataset, rows in micrograph_run().rows.items():
        wanted.append(rules.report_micrographs.output.page.format(dataset=dataset))
        wanted += [path.format(dataset=dataset) for path in PICK_FILES.values()]
        wanted += [
            rules.pick.output.picks.format(dataset=dataset, micrograph=row.micrograph)
            for row in rows
        ]
    return wanted


PICK_FILES = {
    key: directory(path.as_posix()) if key == "eman" else path.as_posix()
    for key, path in combined_outputs(DATASET, CONFIG.micrographs.dialects).items()
}


if workflow.is_main_process and not BRANCH:
    micrograph_run()


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
