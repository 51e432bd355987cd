# What all files of rules share - the checked run, names of files, input and resource functions.
# In: config/config.yaml, config/datasets/*, the models' cards. Out: CONFIG, run() and functions.

import gc
import inspect
import re
import sys
from functools import cache
from math import ceil, prod
from pathlib import Path

import smart_open
from snakemake.common import overwrite_function_params
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.resources import Resource

from tomoline.errors import TomolineError
from tomoline.export.registry import dialect as dialect_of
from tomoline.io.shrec import locations_of
from tomoline.networks.cards import load_card
from tomoline.settings import Config, model_path, validated
from tomoline.stages.benchmark_files import (
    files_of,
    model_cards,
    outputs_of,
    tests_of,
    validation_of,
)
from tomoline.stages.benchmark_plan import make_plan
from tomoline.stages.checks import (
    CONFIG_FILE,
    check_run,
    labelled_rows,
    models_of,
    start_of,
)
from tomoline.stages.image_sets import images_by_name, pairs_of
from tomoline.stages.memory import Available
from tomoline.stages.merge import sifting_threshold
from tomoline.stages.tile import window_bytes
from tomoline_slurm import driver, install

# Targets that need neither tomograms nor models: they make them.
BRANCHES = {
    "simulate",
    "simulate_subtomograms",
    "simulate_demo",
    "simulate_micrographs",
    "train",
    "train_images",
    "segment_images",
    "benchmark",
    "experiments",
}
BRANCH_SETTINGS = {
    "datasets",
    "simulate",
    "simulate_micrographs",
    "train",
    "train_images",
    "segment_images",
    "finetune",
    "benchmark",
    "envmodules",
}


def refused(function, *arguments, **options):
    """Call the library; what it refuses is shown without a traceback."""
    try:
        return function(*arguments, **options)
    except TomolineError as error:
        raise WorkflowError(str(error)) from None


@cache
def run():
    """Everything the main line needs to know, checked: settings, models, tomograms.

    A job's own process need not repeat the costly part (the weights' checksums).
    """
    return refused(check_run, CONFIG, thorough=workflow.is_main_process)


@cache
def claimed():
    """Before a real run is planned, end what a driver that was killed has left behind."""
    if (
        workflow.is_main_process
        and workflow.executor_plugin
        and not (workflow.dryrun or workflow.touch)
    ):
        refused(driver.claim, workflow.persistence.unlock)


install()

CONFIG = refused(validated, Config, config, source=CONFIG_FILE)
MODELS = models_of(CONFIG)
BRANCH = BRANCHES.intersection(sys.argv)

# Refuse what can be refused now, before the first job.
if workflow.is_main_process and not BRANCH:
    if warning := run().warning:
        logger.warning(warning)

# On a cluster a tomogram takes three jobs: `prepare`; `network`, on a GPU; `results`. With shards
# each shard is a job of its own, and the plan that they share is made before them, with a shard's
# memory, where the shards run.
NETWORK = "network"
SHARDED = CONFIG.tiling.shards > 1
ON_GPU = CONFIG.segment.device != "cpu" and (
    CONFIG.segment.device == "cuda"
    or "gpu" in workflow.resource_settings.overwrite_resources.get("segment", {})
)
# What Snakemake's own processes take in a cluster's job; what the localizer's windows may take
# without a GPU; how small a tomogram has to be to share a submission with others (`bundle`, a
# resource that this workflow's executor understands).
JOB_MB = 500
WINDOWS_MB = 8000
BUNDLE_VOXELS = 120e6
BUNDLE_MOST = 16

TOMOGRAM = "results/{dataset}/{tomogram}"
DATASET = "results/{dataset}"


wildcard_constraints:
    dataset="[A-Za-z0-9][A-Za-z0-9._-]*",
    tomogram="[A-Za-z0-9][A-Za-z0-9._-]*",
    scatteritem=r"\d+-of-\d+",


scattergather:
    shards=CONFIG.tiling.shards,


@cache
def sifted_from():
    """The localizer's threshold that the classifier asks for, if it sifts candidates."""
    return refused(sifting_threshold, MODELS["localizer"], MODELS["classifier"])


def known(function):
    """The function, with its parameters noted where Snakemake looks for them."""
    overwrite_function_params(function, inspect.signature(function).parameters)
    return function


# What Snakemake would find out again for every job, a sixth of a plan's time: the parameters of
# its own function that evaluates a resource, and the parts of a script's path.
overwrite_function_params(
    Resource.evaluate, inspect.signature(Resource("", 0).evaluate).parameters
)
smart_open.parse_uri = cache(smart_open.parse_uri)
# A plan is millions of objects that stay: looking for garbage among them takes another tenth.
gc.set_threshold(200_000, 20, 100)


def settings_of(section, without=""):
    """What config.yaml says of a section other than the defaults.

    The library fills in the defaults, so a release that adds a setting repeats no work.
    """
    return getattr(CONFIG, section).model_dump(
        mode="json", exclude_defaults=True, exclude={without}
    )


def log_of(stage):
    """The log of a stage of a tomogram, where `tomoline status` looks for it."""
    return f"{TOMOGRAM}/logs/{stage}.log"


def benchmark_of(stage):
    """Time and memory of a stage of a tomogram, as JSON lines."""
    return f"{TOMOGRAM}/benchmarks/{stage}.jsonl"


def intermediate(name, path):
    """A file that goes when it is no longer needed, unless the setting `keep` names it."""
    return path if name in CONFIG.keep else temp(path)


def row_of(wildcards):
    """The tomogram's row of its dataset's sheet."""
    claimed()
    return run().row(wildcards.dataset, wildcards.tomogram)


@known
def given_tomogram(wildcards):
    """The tomogram's file. One that is gone is left to its own job, which fails alone."""
    path = row_of(wildcards).path
    return path if Path(path).exists() else []


def model_file(role, name):
    """A file of the network that does the work of `role` (localizer or classifier)."""
    return f"{MODELS[role].as_posix()}/{name}"


def of_tomograms(pattern):
    """Input function: `pattern` of every tomogram of a dataset that is run."""

    def paths(wildcards):
        return [
            pattern.format(dataset=wildcards.dataset, tomogram=row.tomogram)
            for row in run().rows[wildcards.dataset]
        ]

    return paths


def files_of_tomograms(**patterns):
    """Parameter function: files of all tomograms that go along with those the rule names."""

    def files(wildcards):
        return {key: of_tomograms(path)(wildcards) for key, path in patterns.items()}

    return files


def memory(base_mb, bytes_per_voxel=0.0, given=False):
    """Memory by the volume's size, in MB, and more at each further attempt.

    Counts the voxels of the prepared volume, or those of the file where `given`. A cluster's job
    holds the workflow's own processes beside the stage.
    """

    def mem_mb(wildcards, attempt):
        voxels = run().voxels(wildcards.dataset, wildcards.tomogram, given=given)
        return int((JOB_MB + base_mb + bytes_per_voxel * voxels / 1e6) * attempt)

    return known(mem_mb)


@known
def segment_memory(wildcards, attempt):
    """Memory of the localizer: windows fill what is given, so large ones are worth asking for."""
    voxels = run().voxels(wildcards.dataset, wildcards.tomogram)
    # The node that will run it may have no bfloat16, whatever this one has.
    host = Available(0, on_gpu=False)
    per_voxel = window_bytes(
        run().cards["localizer"], CONFIG.segment, host, elsewhere=True
    )
    windows = 0 if ON_GPU else per_voxel * voxels / 5e5
    mb = JOB_MB + 3000 + min(windows, WINDOWS_MB) + 12 * voxels / 1e6
    return int(mb * attempt)


def minutes(base, per_million_voxels=0.0, gpu=None):
    """Run time by the prepared volume's size, in minutes, and more at each further attempt.

    `gpu` is for each million voxels where the profile gives the networks a GPU.
    """
    slope = gpu if gpu is not None and ON_GPU else per_million_voxels

    def runtime(wildcards, attempt):
        voxels = run().voxels(wildcards.dataset, wildcards.tomogram)
        return ceil((base + slope * voxels / 1e6) * attempt)

    return known(runtime)


@known
def bundle(wildcards):
    """How many tomograms of this size may share one submission: the small ones together.

    Of a group's rules the last says it, which is in the group whatever is left to do.
    """
    voxels = run().voxels(wildcards.dataset, wildcards.tomogram)
    return max(1, min(BUNDLE_MOST, int(BUNDLE_VOXELS / voxels)))


def bundle_of_shards():
    """Where the plan and the shards are jobs of their own, they say it themselves."""
    return {"bundle": bundle} if SHARDED else {}


def gpu_of(section):
    """One GPU where the setting asks for one; with `auto` the profile decides."""
    return {"gpu": 1} if section.device == "cuda" else {}


def exported(dialect):
    """A tomogram's file in a dialect."""
    return f"{TOMOGRAM}/export/{dialect_of(dialect).file_name}"


def combined_files():
    """Those files of a dataset that are there whatever was found, by dialect."""
    files = {
        name: f"{DATASET}/export/{name}/{dialect_of(name).combined_name}"
        for name in CONFIG.export.dialects
    }
    if "relion5" in files:
        files["relion5_import_list"] = f"{DATASET}/export/relion5/import.star"
    return files


def has_truth(row):
    """Whether a tomogram can be evaluated."""
    return bool(row.truth)


def truth_files(wildcards):
    """The truth of a tomogram, and its volume of particle numbers where there is one."""
    row = row_of(wildcards)
    files = {"truth": row.truth}
    return files | ({"occupancy": row.occupancy} if row.occupancy else {})


# Captions cost time and pages cost size: beyond this many, report.html has the dataset's page
# alone, and report.zip, whose folder costs no captions, is the form to ask for.
PAGES_IN_REPORT = 60
PAGE_CAPTION = workflow.current_basedir.join("../report/tomogram.rst")
DATASET_PAGE = {
    "caption": workflow.current_basedir.join("../report/dataset.rst"),
    "category": "Data sets",
    "labels": {"data set": "{dataset}", "page": "all tomograms"},
}


# Simulated data sets, by folder: their settings.
SETS = {f"results/simulated/{name}": s for name, s in CONFIG.simulate.sets.items()}


def numbers_of(folder):
    """Numbers of the tomograms of a simulated data set."""
    settings = SETS[folder]
    return range(settings.first, settings.first + settings.tomograms)


def simulation_settings(wildcards):
    """Settings of a simulated data set that its tomograms depend on."""
    return SETS[wildcards.simulated].model_dump(
        mode="json", exclude_defaults=True, exclude={"tomograms", "variants"}
    )


def simulation_memory(wildcards, attempt):
    """Memory by the volume's size."""
    nz, ny, nx = SETS[wildcards.simulated].shape_zyx
    return int((JOB_MB + 1000 + 35e-6 * nz * ny * nx) * attempt)


def training_folders(wildcards):
    """The tomograms named to train on and to hold out; those of `simulate` are made first."""
    if CONFIG.train.source == "simulator":
        return []
    folders = [*CONFIG.train.folders, *CONFIG.train.validation_folders]
    return [locations_of(folder) for folder in folders]


def can_finetune():
    """Whether `finetune` is a rule. Where the run uses the models that it makes it is none, unless
    it was asked for: they are files like any other then, and not made again by today's labels.
    """
    made = {
        Path(f"results/models/{CONFIG.finetune.name}-{role}")
        for role in ("localizer", "classifier")
    }
    asked = any(argument.split(":")[0] == "finetune" for argument in sys.argv)
    return asked or not made & set(MODELS.values())


@cache
def tuned_from():
    """The data set whose labels are learnt, and the rows of its tomograms that have some."""
    return refused(labelled_rows, run())


def start_model(role):
    """The card of the model that fine-tuning starts from."""
    return f"{refused(start_of, CONFIG, role).as_posix()}/card.yaml"


def labelled_files(pattern):
    """Input function: `pattern` of every tomogram that has labels."""

    def paths(wildcards):
        name, rows = tuned_from()
        return [pattern.format(dataset=name, tomogram=row.tomogram) for row in rows]

    return paths


def of_labelled(column):
    """Parameter function: a column of the sheet, of the tomograms that have labels."""

    def values(wildcards):
        return {row.tomogram: getattr(row, column) for row in tuned_from()[1]}

    return values


def evaluation_files(wildcards):
    """What the evaluation of a tomogram wrote, where it has a truth."""
    if not has_truth(row_of(wildcards)):
        return {}
    names = {
        "evaluation": "evaluation",
        "evaluation_classes": "classes",
        "confusion": "confusion",
    }
    outputs = rules.evaluate.output
    return {key: str(outputs[name]).format(**wildcards) for key, name in names.items()}


def report_as_folder():
    """Whether `--report` writes a zip file, the only form in which Snakemake takes folders."""
    asked = any(argument.startswith("--report") for argument in sys.argv)
    return asked and any(argument.endswith(".zip") for argument in sys.argv)


def page_of_dataset(path):
    """A data set's page, marked for the report where that is one file."""
    if report_as_folder():
        return path
    return report(path, **DATASET_PAGE)


def folder_of_dataset(path):
    """A data set's folder of pages, marked where Snakemake takes folders: in a zip file."""
    if report_as_folder():
        return report(directory(path), htmlindex="index.html", **DATASET_PAGE)
    return directory(path)


def shown(dataset, tomogram):
    """A tomogram's page, marked for the report if it is there.

    The mark is set here and not on the rule's output, because a marked output has to exist, and
    after a run in which some tomograms failed theirs does not.
    """
    page = rules.report_tomogram.output.page.format(dataset=dataset, tomogram=tomogram)
    many = len(run().rows[dataset]) > PAGES_IN_REPORT
    if many or report_as_folder() or not Path(page).exists():
        return page
    return report(
        page,
        caption=PAGE_CAPTION,
        category="Tomograms",
        subcategory=dataset,
        labels={"tomogram": tomogram, "page": "slices, particles, scores"},
    )


def targets(wildcards):
    """All that a run is to leave behind: of every tomogram, and of every dataset.

    Each tomogram's files are named themselves, so that one that failed is taken up again although
    the dataset's files, made of the others meanwhile, are there.
    """
    claimed()
    wanted = []
    for dataset, rows in run().rows.items():
        wanted += [
            rules.report_dataset.output.page.format(dataset=dataset),
            rules.report_dataset.output.table.format(dataset=dataset),
        ]
        wanted += [path.format(dataset=dataset) for path in combined_files().values()]
        # A tomogram's page comes last of all; its file for the first program stands for the others.
        first, *others = [exported(name) for name in CONFIG.export.dialects]
        for row in rows:
            wanted.append(shown(dataset, row.tomogram))
            wanted.append(first.format(dataset=dataset, tomogram=row.tomogram))
            wanted += added(wanted[-1], others, dataset, row.tomogram)
    return wanted


def added(first, others, dataset, tomogram):
    """Files for programs that were added to the settings after a tomogram was exported.

    Snakemake takes a job whose other outputs are there, and were not made by it, for done.
    """
    if not Path(first).exists():
        return []
    paths = [other.format(dataset=dataset, tomogram=tomogram) for other in others]
    return [path for path in paths if not Path(path).exists()]
