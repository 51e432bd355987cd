# In: the particle table and the prepared volume. Out: class activation maps of chosen particles, by
# one or several classifiers, as a page for the report and as volumes (section `activation`).


rule activation:
    input:
        unpack(truth_files_if_any),
        **numbered("card", shown_cards()),
        particles=rules.vote.output.particles,
        transform=rules.prepare.output.transform,
        volume=rules.prepare.output.volume,
    output:
        page=f"{TOMOGRAM}/report/activation.html",
        maps=f"{TOMOGRAM}/activation.h5",
    log:
        log_of("activation"),
    benchmark:
        benchmark_of("activation")
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 4
    resources:
        mem_mb=memory(2500, 24),
        runtime=minutes(5, 0.1),
    params:
        settings=settings_of("activation"),
        tomogram="{tomogram}",
        dataset=known(lambda wildcards: run().dataset(wildcards.dataset)),
        evaluate=settings_of("evaluate"),
        tilt_series=known(lambda wildcards: row_of(wildcards).tilt_series),
    script:
        "../scripts/activation.py"
