# In: the prepared volume and its plan of windows. Out: probability, mask, candidate centres, and
# whether the model was made for such a tomogram.


rule segment:
    input:
        volume=rules.prepare.output.volume,
        plan=rules.tile.output.plan,
        card=model_file("localizer", "card.yaml"),
    output:
        probability=intermediate("shards", f"{TOMOGRAM}/segment/{{scatteritem}}.h5"),
    log:
        log_of("segment_{scatteritem}"),
    benchmark:
        benchmark_of("segment_{scatteritem}")
    group:
        "segment-{scatteritem}" if SHARDED else NETWORK
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 4
    resources:
        **bundle_of_shards(),
        **gpu_of(CONFIG.segment),
        mem_mb=segment_memory,
        runtime=minutes(10, 1, gpu=0.1),
    params:
        settings=settings_of("segment"),
        shard="{scatteritem}",
    script:
        "../scripts/segment.py"


rule merge:
    input:
        transform=rules.prepare.output.transform,
        plan=rules.tile.output.plan,
        volume=rules.prepare.output.volume,
        card=model_file("localizer", "card.yaml"),
        shards=gather.shards(
            "results/{{dataset}}/{{tomogram}}/segment/{scatteritem}.h5"
        ),
    output:
        probability=intermediate("probability", f"{TOMOGRAM}/probability.mrc"),
        mask=intermediate("mask", f"{TOMOGRAM}/mask.mrc"),
    log:
        log_of("merge"),
    benchmark:
        benchmark_of("merge")
    group:
        NETWORK
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(600, 32),
        runtime=minutes(2, 0.1),
    params:
        settings=settings_of("merge"),
        sifted_from=known(lambda wildcards: sifted_from()),
    script:
        "../scripts/merge.py"


rule cluster:
    input:
        probability=rules.merge.output.probability,
        mask=rules.merge.output.mask,
        volume=rules.prepare.output.volume,
        transform=rules.prepare.output.transform,
        card=model_file("localizer", "card.yaml"),
    output:
        candidates=f"{TOMOGRAM}/candidates.csv",
        domain=f"{TOMOGRAM}/domain.json",
    log:
        log_of("cluster"),
    benchmark:
        benchmark_of("cluster")
    group:
        NETWORK
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(600, 48),
        runtime=minutes(3, 0.2),
    params:
        settings=settings_of("cluster"),
    script:
        "../scripts/cluster.py"
