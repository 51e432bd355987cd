# In: the particles found and, where the sheet names one, the truth. Out: scores and tables.


rule evaluate:
    input:
        unpack(truth_files),
        **cards_of_classifiers("classifier"),
        particles=rules.vote.output.particles,
        segmentation=rules.vote.output.segmentation,
        transform=rules.prepare.output.transform,
        volume=rules.prepare.output.volume,
    output:
        evaluation=f"{TOMOGRAM}/evaluation.json",
        classes=f"{TOMOGRAM}/evaluation_classes.csv",
        confusion=f"{TOMOGRAM}/confusion.csv",
    log:
        log_of("evaluate"),
    benchmark:
        benchmark_of("evaluate")
    group:
        "results"
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(800, 60),
        runtime=minutes(5, 0.3),
    params:
        settings=settings_of("evaluate"),
        dataset=known(lambda wildcards: run().dataset(wildcards.dataset)),
        tilt_series=known(lambda wildcards: row_of(wildcards).tilt_series),
    script:
        "../scripts/evaluate.py"
