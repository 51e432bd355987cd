# In: particle tables. Out: one file a dialect for each tomogram, and one set a dataset.
# What a dialect's files are called, its entry in the library's registry says.


for name in CONFIG.export.dialects:

    rule:
        name:
            f"export_{name}"
        input:
            particles=rules.vote.output.particles,
            transform=rules.prepare.output.transform,
        output:
            exported=f"{TOMOGRAM}/export/{export_name(name)}",
        log:
            log_of(f"export_{name}"),
        benchmark:
            benchmark_of(f"export_{name}")
        localrule: True
        conda:
            "../../envs/runtime.yaml"
        resources:
            mem_mb=600,
            runtime=5,
        params:
            settings=settings_of("export"),
            dialect=name,
            dataset=lambda wildcards: run().dataset(wildcards.dataset),
            tilt_series=lambda wildcards: row_of(wildcards).tilt_series,
        script:
            "../scripts/export.py"

    rule:
        name:
            f"combine_{name}"
        input:
            particles=of_tomograms(rules.vote.output.particles),
            transforms=of_tomograms(rules.prepare.output.transform),
            exported=of_tomograms(f"{TOMOGRAM}/export/{export_name(name)}"),
        output:
            **combined_files(name),
        log:
            f"{DATASET}/logs/combine_{name}.log",
        benchmark:
            f"{DATASET}/benchmarks/combine_{name}.jsonl"
        localrule: True
        conda:
            "../../envs/runtime.yaml"
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            settings=settings_of("export"),
            dialect=name,
            dataset=lambda wildcards: run().dataset(wildcards.dataset),
            tilt_series=lambda wildcards: [
                row.tilt_series for row in run().rows[wildcards.dataset]
            ],
        script:
            "../scripts/combine.py"
