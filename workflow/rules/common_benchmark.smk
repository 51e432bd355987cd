# What the rules of benchmarks share - the plan, and input functions.
# In: the sections benchmark and train, and the files they name. Out: PLAN and functions.

BENCHMARKS = "results/benchmarks"
SCENE = f"{BENCHMARKS}/{{benchmark}}/{{tomogram}}"
PLAN = refused(make_plan, CONFIG)
# The methods of all experiments together are no table: each experiment has its own.
TABLES = [name for name in PLAN.benchmarks if name != PLAN.variants] + [
    *PLAN.experiments
]
MODELS_MADE = "results/models/{training}"
EXPERIMENTS_TABLE = {
    "table": f"{BENCHMARKS}/{CONFIG.benchmark.name}/all.csv",
    "page": f"{BENCHMARKS}/{CONFIG.benchmark.name}/all.md",
    "picture": f"{BENCHMARKS}/{CONFIG.benchmark.name}/all.png",
}


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


def scores_of(name):
    """Scores of the methods of a table on all its test tomograms."""
    settings, _ = PLAN.table(name)
    return [
        f"{BENCHMARKS}/{settings.name}/{tomogram}/{method}/scores.json"
        for tomogram in tests_of(settings)
        for method in settings.methods
    ]


def experiments_of():
    """Settings of all experiments, by the name of their benchmark."""
    return {
        name: experiment.settings.model_dump(mode="json")
        for name, experiment in PLAN.experiments.items()
    }


def tables_so_far():
    """Write the tables of benchmarks of which something failed, with the reasons."""
    from tomoline.stages import benchmark_table, experiments_table

    for name in TABLES:
        settings, labels = PLAN.table(name)
        benchmark_table.write_tables(
            settings,
            outputs_of(name),
            densities=Path(DENSITIES),
            title=name,
            labels=labels,
        )
    if PLAN.experiments:
        experiments_table.run({}, EXPERIMENTS_TABLE, experiments=experiments_of())


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
