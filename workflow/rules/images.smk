# In: images or micrographs, for training with labels. Out: segmenters with their cards and a table
# of how they do on held-out images (`snakemake train_images`); masks and probabilities of images by
# a segmenter (`snakemake segment_images`), below results/<dataset>/<image>.

IMAGE_MODEL = f"results/models/{CONFIG.train_images.name}-{{image_network}}"
IMAGE_TABLES = f"results/models/{CONFIG.train_images.name}"
SEGMENTER = model_path(CONFIG.segment_images.model, CONFIG.models.folder)
SEGMENTER_CARD = SEGMENTER.joinpath("card.yaml").as_posix()
if "segment_images" in BRANCH:
    refused(load_card, SEGMENTER)
IMAGES = (
    refused(images_by_name, CONFIG.segment_images) if "segment_images" in BRANCH else {}
)


wildcard_constraints:
    image_network="|".join(CONFIG.train_images.networks),


rule train_images:
    input:
        f"{IMAGE_TABLES}/comparison.md",
        f"{IMAGE_TABLES}/comparison.tsv",


rule train_images_of:
    input:
        lambda wildcards: [
            str(path)
            for pair in refused(pairs_of, CONFIG.train_images)
            for path in pair
        ],
    output:
        card=f"{IMAGE_MODEL}/card.yaml",
        weights=f"{IMAGE_MODEL}/weights.safetensors",
        curves=f"{IMAGE_MODEL}/curves.jsonl",
        picture=f"{IMAGE_MODEL}/curves.png",
    log:
        f"{IMAGE_MODEL}/logs/train.log",
    benchmark:
        f"{IMAGE_MODEL}/benchmarks/train.jsonl"
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 16
    resources:
        **gpu_of(CONFIG.train_images),
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=1440,
    params:
        settings=settings_of("train_images"),
        network=lambda wildcards: wildcards.image_network,
        work=f"{IMAGE_MODEL}/checkpoints",
    script:
        "../scripts/train_images_of.py"


rule compare_images:
    input:
        cards=[
            f"{IMAGE_MODEL}/card.yaml".format(image_network=name)
            for name in CONFIG.train_images.networks
        ],
    output:
        table=f"{IMAGE_TABLES}/comparison.tsv",
        page=f"{IMAGE_TABLES}/comparison.md",
    log:
        f"{IMAGE_TABLES}/logs/compare.log",
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 8
    resources:
        **gpu_of(CONFIG.train_images),
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=60,
    params:
        settings=settings_of("train_images"),
    script:
        "../scripts/compare_images.py"


rule segment_images:
    input:
        [f"results/{CONFIG.segment_images.dataset}/{name}/mask.png" for name in IMAGES],


rule segment_images_of:
    input:
        image=lambda wildcards: IMAGES[wildcards.image],
        card=SEGMENTER_CARD,
    output:
        mask="results/{image_set}/{image}/mask.png",
        probability="results/{image_set}/{image}/mask_probability.png",
        summary="results/{image_set}/{image}/mask.json",
    log:
        "results/{image_set}/{image}/logs/mask.log",
    benchmark:
        "results/{image_set}/{image}/benchmarks/mask.jsonl"
    wildcard_constraints:
        image_set=re.escape(CONFIG.segment_images.dataset),
        image="|".join(re.escape(name) for name in IMAGES) or "none",
    conda:
        "../../envs/gpu.yaml"
    envmodules:
        *CONFIG.envmodules.of("gpu"),
    threads: 2
    resources:
        **gpu_of(CONFIG.segment_images),
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=30,
    params:
        settings=settings_of("segment_images"),
    script:
        "../scripts/segment_images_of.py"
