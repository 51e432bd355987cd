# In: particle tables, evaluations, pictures. Out: a page a tomogram and a page a dataset, which
# `snakemake --report` gathers: the pages one by one in report.html, the folder of them, with its
# links, in report.zip.


rule report_tomogram:
    input:
        unpack(evaluation_files),
        # Not read: it joins a tomogram's last rules, so that they are one job on a cluster.
        exported=exported(CONFIG.export.dialects[0]),
        particles=rules.vote.output.particles,
        transform=rules.prepare.output.transform,
        volume=rules.prepare.output.volume,
        domain=rules.cluster.output.domain,
    output:
        page=f"{TOMOGRAM}/report/tomogram.html",
        slices=f"{TOMOGRAM}/report/slices.png",
    log:
        log_of("report_tomogram"),
    benchmark:
        benchmark_of("report_tomogram")
    group:
        "results"
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=memory(800, 12),
        runtime=minutes(3, 0.1),
        bundle=bundle,
    params:
        settings=settings_of("report"),
        tomogram="{tomogram}",
        dataset="{dataset}",
        benchmarks=f"{TOMOGRAM}/benchmarks",
        min_score=CONFIG.export.min_score,
    script:
        "../scripts/report_tomogram.py"


rule report_dataset:
    input:
        pages=of_tomograms(rules.report_tomogram.output.page),
        combined=[combined_files()[name] for name in CONFIG.export.dialects],
        cards=[model_file(role, "card.yaml") for role in MODELS],
    output:
        page=page_of_dataset(f"{DATASET}/report/summary.html"),
        table=f"{DATASET}/report/summary.csv",
        plots=f"{DATASET}/report/plots.js",
        folder=folder_of_dataset(f"{DATASET}/report/pages"),
    log:
        f"{DATASET}/logs/report_dataset.log",
    benchmark:
        f"{DATASET}/benchmarks/report_dataset.jsonl"
    localrule: True
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=1500,
        runtime=20,
    params:
        files=files_of_tomograms(particles=rules.vote.output.particles),
        settings=settings_of("report"),
        dataset="{dataset}",
        refused=known(lambda wildcards: run().listed_only(wildcards.dataset)),
        config=CONFIG.model_dump(mode="json", exclude=BRANCH_SETTINGS),
    script:
        "../scripts/report_dataset.py"
