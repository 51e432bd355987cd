# In: a tomogram as given. Out: the volume the networks read, the way back to the given voxels, a
# picture of the middle slice, and the plan of the windows it is cut into.


rule prepare:
    input:
        tomogram=given_tomogram,
        model=model_file("localizer", "card.yaml"),
    output:
        volume=intermediate("prepared", f"{TOMOGRAM}/prepared.mrc"),
        transform=f"{TOMOGRAM}/prepared.json",
        picture=f"{TOMOGRAM}/middle.png",
    log:
        log_of("prepare"),
    benchmark:
        benchmark_of("prepare")
    group:
        "prepare"
    conda:
        "../../envs/imod.yaml" if CONFIG.prepare.imod else "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("imod" if CONFIG.prepare.imod else "runtime"),
    resources:
        mem_mb=memory(600, 48, given=True),
        runtime=minutes(5, 0.2),
        bundle=bundle,
    params:
        settings=settings_of("prepare"),
        tomogram=known(lambda wildcards: row_of(wildcards).path),
        dataset=known(lambda wildcards: run().dataset_for_prepare(wildcards.dataset)),
        axes=known(lambda wildcards: row_of(wildcards).axes),
    script:
        "../scripts/prepare.py"


rule tile:
    input:
        transform=rules.prepare.output.transform,
        card=model_file("localizer", "card.yaml"),
    output:
        plan=f"{TOMOGRAM}/plan.json",
    log:
        log_of("tile"),
    benchmark:
        benchmark_of("tile")
    group:
        "plan" if SHARDED else NETWORK
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        **bundle_of_shards(),
        mem_mb=segment_memory if SHARDED else memory(600),
        runtime=2,
    params:
        settings=settings_of("tiling"),
        inference=settings_of("segment", without="batch_size"),
    script:
        "../scripts/tile.py"
