# In: tomograms with truth, and methods (config/benchmarks). Out: every method tuned on the
# validation tomograms and scored on the test ones, in one table (`snakemake benchmark --configfile
# config/benchmarks/NAME.yaml`); and the trainings that are compared (`snakemake experiments`).

BENCHMARKS = "results/benchmarks"
SCENE = f"{BENCHMARKS}/{{benchmark}}/{{tomogram}}"
PLAN = refused(make_plan, CONFIG)
MODELS_MADE = "results/models/{training}"


def one_of(names):
    """A wildcard's pattern: one of these names; with none, nothing fits."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def of_benchmark(wildcards):
    """Settings of the benchmark of a job."""
    return PLAN.benchmarks[wildcards.benchmark]


def bench_tomogram(wildcards):
    """Settings of the tomogram of a job."""
    return of_benchmark(wildcards).tomograms[wildcards.tomogram]


def bench_method(wildcards):
    """What a benchmark says of a method other than the defaults."""
    method = of_benchmark(wildcards).methods[wildcards.method]
    return method.model_dump(mode="json", exclude_defaults=True)


def bench_models(wildcards):
    """Cards of the models that a method runs."""
    return model_cards(of_benchmark(wildcards).methods[wildcards.method])


def bench_truth(wildcards):
    """Files of the truth of a tomogram."""
    files = files_of(bench_tomogram(wildcards))
    return [path for key, path in files.items() if key != "tomogram"]


def bench_validation(pattern):
    """Input function: `pattern` of the validation tomograms of a group."""

    def paths(wildcards):
        names = validation_of(of_benchmark(wildcards), wildcards.group)
        values = dict(wildcards.items())
        return [pattern.format(**values | {"tomogram": name}) for name in names]

    return paths


def bench_tuned(wildcards):
    """The settings of a method for a test tomogram's group."""
    group = bench_tomogram(wildcards).group
    return f"{BENCHMARKS}/{wildcards.benchmark}/tuned/{group}/{wildcards.method}.json"


def bench_scores(wildcards):
    """Scores of all methods on all test tomograms."""
    settings = of_benchmark(wildcards)
    return [
        f"{BENCHMARKS}/{wildcards.benchmark}/{tomogram}/{method}/scores.json"
        for tomogram in tests_of(settings)
        for method in settings.methods
    ]


def trained_before(wildcards):
    """Tomograms that a training reads, and the curves of the training it goes on from."""
    settings = PLAN.trainings[wildcards.training]
    folders = (
        []
        if settings.source == "simulator"
        else [*settings.folders, *settings.validation_folders]
    )
    before = Path(settings.init_from).parent.name if settings.init_from else ""
    curves = (
        [f"results/models/{before}/curves.jsonl"] if before in PLAN.trainings else []
    )
    return [f"{folder}/particle_locations.txt" for folder in folders] + curves


def bench_log(step):
    """The log of a step; the table reads it where the step failed."""
    return f"{BENCHMARKS}/{{benchmark}}/logs/{step}.log"


def bench_time(step):
    """Time and memory of a step, as JSON lines."""
    return f"{BENCHMARKS}/{{benchmark}}/benchmarks/{step}.jsonl"


def bench_memory(wildcards, attempt):
    """Memory: score maps, or all classes' probabilities."""
    return 8000 * attempt


wildcard_constraints:
    benchmark=one_of(PLAN.benchmarks),
    method="[A-Za-z0-9][A-Za-z0-9._-]*",
    group="[A-Za-z0-9][A-Za-z0-9._-]*",


rule benchmark:
    input:
        [
            path
            for name in PLAN.benchmarks
            if name not in PLAN.experiments
            for path in outputs_of(name).values()
        ],


rule experiments:
    input:
        [path for name in PLAN.experiments for path in outputs_of(name).values()],
        (
            [f"{BENCHMARKS}/{CONFIG.benchmark.name}/{n}" for n in ("all.csv", "all.md")]
            if PLAN.experiments
            else []
        ),


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
        scores=bench_scores,
        densities=ancient(DENSITIES),
    output:
        **outputs_of("{benchmark}"),
    log:
        bench_log("table"),
    benchmark:
        bench_time("table")
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=lambda wildcards: of_benchmark(wildcards).model_dump(mode="json"),
    script:
        "../scripts/benchmark_table.py"


rule experiments_table:
    input:
        [outputs_of(name)["table"] for name in PLAN.experiments],
    output:
        table=f"{BENCHMARKS}/{CONFIG.benchmark.name}/all.csv",
        page=f"{BENCHMARKS}/{CONFIG.benchmark.name}/all.md",
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
        experiments={
            name: settings.model_dump(mode="json")
            for name, settings in PLAN.experiments.items()
        },
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
