# In: tomograms with truth, and methods (config/benchmarks). Out: every method tuned on the
# validation tomograms and scored on the test ones, in one table (`snakemake benchmark --configfile
# config/benchmarks/NAME.yaml`); and the trainings that are compared (`snakemake experiments`).


wildcard_constraints:
    benchmark=one_of(PLAN.benchmarks),
    method="[A-Za-z0-9][A-Za-z0-9._-]*",
    group="[A-Za-z0-9][A-Za-z0-9._-]*",


# Scores are named themselves, so that what failed is taken up again although the table, written with
# the reasons, is there.
rule benchmark:
    input:
        [
            path
            for name in TABLES
            if name not in PLAN.experiments
            for path in [*outputs_of(name).values(), *scores_of(name)]
        ],


rule experiments:
    input:
        [
            path
            for name in PLAN.experiments
            for path in [*outputs_of(name).values(), *scores_of(name)]
        ],
        [*EXPERIMENTS_TABLE.values()] if PLAN.experiments else [],


rule benchmark_prepare:
    input:
        tomogram=lambda wildcards: files_of(bench_tomogram(wildcards))["tomogram"],
        model=ancient(model_file("localizer", "card.yaml")),
    output:
        volume=f"{SCENE}/prepared.mrc",
        transform=f"{SCENE}/prepared.json",
        picture=f"{SCENE}/middle.png",
    log:
        bench_log("{tomogram}.prepare"),
    benchmark:
        bench_time("{tomogram}.prepare")
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=bench_memory,
        runtime=30,
    params:
        settings=settings_of("prepare"),
        dataset=lambda wildcards: {
            "name": "benchmark",
            "voxel_size_angstrom": bench_tomogram(wildcards).voxel_size_angstrom,
            "contrast": bench_tomogram(wildcards).contrast,
            "axes": bench_tomogram(wildcards).axes,
        },
    script:
        "../scripts/benchmark_prepare.py"


rule benchmark_respond:
    input:
        volume=rules.benchmark_prepare.output.volume,
        transform=rules.benchmark_prepare.output.transform,
        densities=ancient(DENSITIES),
        models=bench_models,
    output:
        response=f"{SCENE}/{{method}}/response.h5",
        cost=f"{SCENE}/{{method}}/cost.json",
    log:
        bench_log("{tomogram}.{method}.respond"),
    benchmark:
        bench_time("{tomogram}.{method}.respond")
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 4
    resources:
        mem_mb=bench_memory,
        runtime=1440,
    params:
        settings=bench_method,
        tomogram=lambda wildcards: bench_tomogram(wildcards).model_dump(mode="json"),
        work=f"{SCENE}/{{method}}/work",
    script:
        "../scripts/benchmark_respond.py"


rule benchmark_tune:
    input:
        responses=bench_validation(rules.benchmark_respond.output.response),
        volumes=bench_validation(rules.benchmark_prepare.output.volume),
        transforms=bench_validation(rules.benchmark_prepare.output.transform),
        densities=ancient(DENSITIES),
    output:
        tuned=f"{BENCHMARKS}/{{benchmark}}/tuned/{{group}}/{{method}}.json",
    log:
        bench_log("{group}.{method}.tune"),
    benchmark:
        bench_time("{group}.{method}.tune")
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=bench_memory,
        runtime=240,
    params:
        settings=bench_method,
        tomograms=lambda wildcards: [
            of_benchmark(wildcards).tomograms[name].model_dump(mode="json")
            for name in validation_of(of_benchmark(wildcards), wildcards.group)
        ],
        work=f"{BENCHMARKS}/{{benchmark}}/tuned/{{group}}",
    script:
        "../scripts/benchmark_tune.py"


rule benchmark_score:
    input:
        bench_truth,
        response=rules.benchmark_respond.output.response,
        cost=rules.benchmark_respond.output.cost,
        volume=rules.benchmark_prepare.output.volume,
        transform=rules.benchmark_prepare.output.transform,
        tuned=bench_tuned,
        densities=ancient(DENSITIES),
    output:
        picks=f"{SCENE}/{{method}}/picks.csv",
        scores=f"{SCENE}/{{method}}/scores.json",
        classes=f"{SCENE}/{{method}}/classes.csv",
        confusion=f"{SCENE}/{{method}}/confusion.csv",
    log:
        bench_log("{tomogram}.{method}.score"),
    benchmark:
        bench_time("{tomogram}.{method}.score")
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 4
    resources:
        mem_mb=bench_memory,
        runtime=120,
    params:
        settings=bench_method,
        tomogram=lambda wildcards: bench_tomogram(wildcards).model_dump(mode="json"),
        work=f"{SCENE}/{{method}}/picks",
    script:
        "../scripts/benchmark_score.py"


rule benchmark_table:
    input:
        scores=lambda wildcards: scores_of(wildcards.benchmark),
        densities=ancient(DENSITIES),
    output:
        **outputs_of("{benchmark}"),
    log:
        bench_log("table"),
    benchmark:
        bench_time("table")
    wildcard_constraints:
        benchmark=one_of(TABLES),
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=lambda wildcards: PLAN.table(wildcards.benchmark)[0].model_dump(
            mode="json"
        ),
        labels=lambda wildcards: PLAN.table(wildcards.benchmark)[1],
    script:
        "../scripts/benchmark_table.py"


rule experiments_table:
    input:
        [outputs_of(name)["table"] for name in PLAN.experiments],
    output:
        **EXPERIMENTS_TABLE,
    log:
        f"{BENCHMARKS}/{CONFIG.benchmark.name}/logs/experiments_table.log",
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        experiments=experiments_of(),
    script:
        "../scripts/experiments_table.py"


rule benchmark_train:
    input:
        trained_before,
        densities=ancient(DENSITIES),
    output:
        localizer=f"{MODELS_MADE}-localizer/card.yaml",
        classifier=f"{MODELS_MADE}-classifier/card.yaml",
        curves=f"{MODELS_MADE}/curves.jsonl",
        picture=f"{MODELS_MADE}/curves.png",
    log:
        f"{MODELS_MADE}/logs/train.log",
    benchmark:
        f"{MODELS_MADE}/benchmarks/train.jsonl"
    wildcard_constraints:
        training=one_of(PLAN.of_task("joint")),
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 16
    resources:
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=1440,
    params:
        settings=lambda wildcards: PLAN.trainings[wildcards.training].model_dump(
            mode="json", exclude_defaults=True
        ),
        work=f"{MODELS_MADE}/checkpoints",
    script:
        "../scripts/benchmark_train.py"


# A network for one task, such as the U-Net, makes one model.
use rule benchmark_train as benchmark_train_classifier with:
    output:
        classifier=f"{MODELS_MADE}-classifier/card.yaml",
        curves=f"{MODELS_MADE}/curves.jsonl",
        picture=f"{MODELS_MADE}/curves.png",
    wildcard_constraints:
        training=one_of(PLAN.of_task("classifier")),


ruleorder: train > benchmark_train > benchmark_train_classifier
