# From tomograms to classified particle lists: `snakemake` runs what config/config.yaml names,
# `snakemake --report report.html` shows what came out, `tomoline status` where everything stands.


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


container: "envs/tomoline.sif"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/localize.smk"
include: "workflow/rules/classify.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/simulate_micrographs.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/images.smk"


if can_finetune():

    include: "workflow/rules/finetune.smk"


include: "workflow/rules/common_benchmark.smk"
include: "workflow/rules/benchmark.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        targets,


onerror:
    # With keep-going all others have finished by now; what waits for all of them is made of these.
    # A benchmark's table says of each method that failed why it did.
    if BRANCH & {"benchmark", "experiments"}:
        tables_so_far()
    if not BRANCH:
        from tomoline.stages.summary import refresh

        refresh(run())
