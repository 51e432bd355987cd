# In: particle tables. Out: a file a dialect for each tomogram, and one set a dataset.
# What a dialect's files are called, its entry in the library's registry says.


rule export:
    input:
        particles=rules.vote.output.particles,
        transform=rules.prepare.output.transform,
    output:
        **{name: exported(name) for name in CONFIG.export.dialects},
    log:
        log_of("export"),
    benchmark:
        benchmark_of("export")
    group:
        "results"
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(600),
        runtime=minutes(2),
    params:
        settings=settings_of("export"),
        dataset=known(lambda wildcards: run().dataset(wildcards.dataset)),
        tilt_series=known(lambda wildcards: row_of(wildcards).tilt_series),
    script:
        "../scripts/export.py"


rule combine:
    input:
        # One file stands for all of a tomogram: each one named costs planning time.
        of_tomograms(exported(CONFIG.export.dialects[0])),
    output:
        **combined_files(),
    log:
        f"{DATASET}/logs/combine.log",
    benchmark:
        f"{DATASET}/benchmarks/combine.jsonl"
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        files=files_of_tomograms(
            particles=rules.vote.output.particles,
            transforms=rules.prepare.output.transform,
            **{name: exported(name) for name in CONFIG.export.dialects},
        ),
        settings=settings_of("export"),
        dataset=known(lambda wildcards: run().dataset(wildcards.dataset)),
        tilt_series=lambda wildcards: [
            row.tilt_series for row in run().rows[wildcards.dataset]
        ],
    script:
        "../scripts/combine.py"
