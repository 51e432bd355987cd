# In: candidates and prepared volumes, or a user's own files of subtomograms, and a DSM-Net with all
# its subnets. Out: the own voxels and the density of each particle, and the clusters of a data set
# with their page (`snakemake discover`, or with the line where `discover.enabled` is true;
# docs/subtomograms.md). Clusters that a file names are classes of the particle table.

DISCOVER_MODEL = model_path(CONFIG.discover.model, CONFIG.models.folder).as_posix()
DISCOVERED = f"results/discovered/{CONFIG.discover.name}"
# What only names subtomograms marks no voxels.
MASKS = "segmentation" in refused(subnets_of, CONFIG)
OWN_FILES = {f"{k:03d}": path for k, path in enumerate(CONFIG.discover.files, 1)}

if workflow.is_main_process and "discover" in sys.argv:
    refused(check_discovery, CONFIG)


wildcard_constraints:
    part=one_of(OWN_FILES),


rule discover:
    input:
        (
            [f"{DISCOVERED}/clusters.html"]
            if OWN_FILES
            else expand(f"{DATASET}/discovery/clusters.html", dataset=CONFIG.datasets)
        ),


use rule extract as extract_multitask with:
    input:
        candidates=rules.cluster.output.candidates,
        volume=rules.prepare.output.volume,
        card=f"{DISCOVER_MODEL}/card.yaml",
    output:
        subtomograms=temp(f"{TOMOGRAM}/discovery/subtomograms.h5"),
    log:
        log_of("extract_multitask"),
    benchmark:
        benchmark_of("extract_multitask")
    group:
        "discovery"
    params:
        settings={},


rule multitask:
    input:
        subtomograms=rules.extract_multitask.output.subtomograms,
        card=f"{DISCOVER_MODEL}/card.yaml",
    output:
        **({"masks": f"{TOMOGRAM}/discovery/masks.mrc"} if MASKS else {}),
        features=f"{TOMOGRAM}/discovery/features.h5",
        densities=f"{TOMOGRAM}/discovery/densities.mrc",
    log:
        log_of("multitask"),
    benchmark:
        benchmark_of("multitask")
    group:
        "discovery"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 4
    resources:
        **gpu_of(CONFIG.discover),
        mem_mb=memory(4000, 8),
        runtime=minutes(15, 3, gpu=0.2),
    params:
        settings=discover_settings(),
    script:
        "../scripts/multitask.py"


# A file's particles are not counted before it is made, so its memory and time are not by size.
use rule multitask as multitask_file with:
    input:
        subtomograms=lambda wildcards: OWN_FILES[wildcards.part],
        card=f"{DISCOVER_MODEL}/card.yaml",
    output:
        **({"masks": f"{DISCOVERED}/{{part}}/masks.mrc"} if MASKS else {}),
        features=f"{DISCOVERED}/{{part}}/features.h5",
        densities=f"{DISCOVERED}/{{part}}/densities.mrc",
    log:
        f"{DISCOVERED}/logs/multitask_{{part}}.log",
    benchmark:
        f"{DISCOVERED}/benchmarks/multitask_{{part}}.jsonl"
    group:
        "discovery"
    resources:
        **gpu_of(CONFIG.discover),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=480,


rule cluster_features:
    input:
        features=of_tomograms(rules.multitask.output.features),
        densities=of_tomograms(rules.multitask.output.densities),
    output:
        page=f"{DATASET}/discovery/clusters.html",
        clusters=f"{DATASET}/discovery/clusters.csv",
        curve=f"{DATASET}/discovery/curve.csv",
        enrichment=f"{DATASET}/discovery/enrichment.csv",
        means=f"{DATASET}/discovery/means.mrc",
        class_means=f"{DATASET}/discovery/class_means.mrc",
        figures=f"{DATASET}/discovery/discovery.json",
    log:
        f"{DATASET}/logs/discover.log",
    benchmark:
        f"{DATASET}/benchmarks/discover.jsonl"
    conda:
        "../../envs/runtime.yaml"
    envmodules:
        *CONFIG.envmodules.of("runtime"),
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=240,
    params:
        settings=discover_settings(),
        title="{dataset}",
        tomograms=known(
            lambda wildcards: [row.tomogram for row in run().rows[wildcards.dataset]]
        ),
        simulated=[],
    script:
        "../scripts/discover.py"


use rule cluster_features as cluster_features_of_files with:
    input:
        features=expand(rules.multitask_file.output.features, part=OWN_FILES),
        densities=expand(rules.multitask_file.output.densities, part=OWN_FILES),
    output:
        page=f"{DISCOVERED}/clusters.html",
        clusters=f"{DISCOVERED}/clusters.csv",
        curve=f"{DISCOVERED}/curve.csv",
        enrichment=f"{DISCOVERED}/enrichment.csv",
        means=f"{DISCOVERED}/means.mrc",
        class_means=f"{DISCOVERED}/class_means.mrc",
        figures=f"{DISCOVERED}/discovery.json",
    log:
        f"{DISCOVERED}/logs/discover.log",
    benchmark:
        f"{DISCOVERED}/benchmarks/discover.jsonl"
    params:
        settings=discover_settings(),
        title=CONFIG.discover.name,
        tomograms=[Path(path).stem for path in CONFIG.discover.files],
        simulated=CONFIG.discover.files,
