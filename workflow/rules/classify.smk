# In: candidate centres and the prepared volume. Out: the particle table, in the given voxels.


rule extract:
    input:
        candidates=rules.cluster.output.candidates,
        volume=rules.prepare.output.volume,
        card=model_file("classifier", "card.yaml"),
    output:
        subtomograms=intermediate("subtomograms", f"{TOMOGRAM}/subtomograms.h5"),
    log:
        log_of("extract"),
    benchmark:
        benchmark_of("extract")
    group:
        NETWORK
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(600, 8),
        runtime=minutes(2, 0.1),
    params:
        settings=settings_of("extract"),
    script:
        "../scripts/extract.py"


rule classify:
    input:
        **cards_of_classifiers("card"),
        subtomograms=rules.extract.output.subtomograms,
    output:
        **{
            name: intermediate("classes", path)
            for name, path in of_classifiers(
                "classes", f"{TOMOGRAM}/classes{{}}.h5"
            ).items()
        },
    log:
        log_of("classify"),
    benchmark:
        benchmark_of("classify")
    group:
        NETWORK
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 4
    resources:
        **gpu_of(CONFIG.classify),
        mem_mb=memory(3000, 8),
        runtime=minutes(10, 1.5, gpu=0.1),
    params:
        settings=settings_of("classify"),
    script:
        "../scripts/classify.py"


rule vote:
    input:
        unpack(named_clusters),
        unpack(particle_masks),
        **of_classifiers("classes", f"{TOMOGRAM}/classes{{}}.h5"),
        **cards_of_classifiers("classifier"),
        candidates=rules.cluster.output.candidates,
        transform=rules.prepare.output.transform,
        localizer=model_file("localizer", "card.yaml"),
    output:
        particles=f"{TOMOGRAM}/particles.csv",
        segmentation=f"{TOMOGRAM}/segmentation.mrc.gz",
    log:
        log_of("vote"),
    benchmark:
        benchmark_of("vote")
    group:
        VOTES
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(600, 8),
        runtime=minutes(2, 0.1),
        bundle=bundle,
    params:
        settings=settings_of("vote"),
        tomogram="{tomogram}",
        dataset=known(lambda wildcards: run().dataset_geometry(wildcards.dataset)),
    script:
        "../scripts/vote.py"
