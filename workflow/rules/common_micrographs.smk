# What the rules of micrographs share - the checked data sets, names of files, input functions.
# In: data sets of micrographs, the picker's card. Out: micrograph_run(), picked() and functions.

MICROGRAPH = "results/{dataset}/{micrograph}"
PICKER = f"results/models/{CONFIG.train_picker.name}"


wildcard_constraints:
    micrograph="[A-Za-z0-9][A-Za-z0-9._-]*",


@cache
def micrograph_run():
    """The data sets of micrographs, checked."""
    return refused(check_micrographs, CONFIG, thorough=workflow.is_main_process)


def micrograph_row(wildcards):
    """The micrograph's row of its data set's sheet."""
    claimed()
    return micrograph_run().row(wildcards.dataset, wildcards.micrograph)


@known
def given_micrograph(wildcards):
    """The files a micrograph is picked by. One that is gone fails in its own job, alone."""
    row = micrograph_row(wildcards)
    return [path for path in (row.path, row.mask) if path and Path(path).exists()]


@known
def mask_of(wildcards):
    """The mask a micrograph is picked with: the sheet's, else the segmenter's; empty for none."""
    row = micrograph_row(wildcards)
    if row.mask or not CONFIG.micrographs.mask_model:
        return row.mask
    return rules.mask_micrograph.output.probability.format(**wildcards)


@known
def made_mask(wildcards):
    """The mask, where the workflow has to make it first."""
    made = CONFIG.micrographs.mask_model and not micrograph_row(wildcards).mask
    return [mask_of(wildcards)] if made else []


@known
def segmenter_settings(wildcards):
    """How a micrograph's contamination is looked for."""
    dataset = micrograph_run().datasets[wildcards.dataset]
    return {
        "model": CONFIG.micrographs.mask_model,
        "pixel_size_angstrom": dataset.pixel_size_angstrom,
        "invert": dataset.contrast == "bright",
        "device": CONFIG.micrographs.device,
    }


def of_micrographs(name):
    """Input function: a file of every micrograph of a data set that is run."""

    def paths(wildcards):
        rows = micrograph_run().rows[wildcards.dataset]
        return [f"results/{wildcards.dataset}/{row.micrograph}/{name}" for row in rows]

    return paths


def micrograph_memory(wildcards, attempt):
    """Memory by the size of a micrograph: some copies of it, and the network's maps."""
    row = micrograph_row(wildcards)
    pixels = (row.ny or 8000) * (row.nx or 8000)
    return int((JOB_MB + 1500 + 60 * pixels / 1e6) * attempt)


def picked():
    """All that a run is to leave behind of micrographs."""
    wanted = []
    for dataset, rows in micrograph_run().rows.items():
        wanted.append(rules.report_micrographs.output.page.format(dataset=dataset))
        wanted += [path.format(dataset=dataset) for path in PICK_FILES.values()]
        wanted += [
            rules.pick.output.picks.format(dataset=dataset, micrograph=row.micrograph)
            for row in rows
        ]
    return wanted


PICK_FILES = {
    key: directory(path.as_posix()) if key == "eman" else path.as_posix()
    for key, path in combined_outputs(DATASET, CONFIG.micrographs.dialects).items()
}


if workflow.is_main_process and not BRANCH:
    micrograph_run()
