"""The command `tomoline`: a registry of subcommands, each a function of the parsed arguments.

To add one, write a function that declares its arguments and one that runs, and join them with
`@command(name, arguments)`; the first line of the latter's docstring is its help. It returns the
exit code: 0 done, 1 done with a bad answer, 2 refused (a `TomolineError`, shown without traceback).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tomoline.errors import InputError, TomolineError

if TYPE_CHECKING:
    from tomoline.stages.onboard import Request

Arguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """One subcommand: its name, how it declares its arguments, and what it does."""

    name: str
    arguments: Arguments
    run: Run
    passes_on: bool = False  # what follows `--` is another program's: `arguments.passed_on`

    @property
    def help(self) -> str:
        """First line of the function's docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


COMMANDS: dict[str, Command] = {}


def command(name: str, arguments: Arguments, *, passes_on: bool = False) -> Callable[[Run], Run]:
    """Register a function as the subcommand `name`."""

    def register(run: Run) -> Run:
        COMMANDS[name] = Command(name, arguments, run, passes_on)
        return run

    return register


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every registered subcommand."""
    parser = argparse.ArgumentParser(
        prog="tomoline",
        description="Find and classify particles in cryo-electron tomograms.",
        epilog="The workflow itself is run with snakemake, in the project folder.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for entry in COMMANDS.values():
        sub = commands.add_parser(entry.name, help=entry.help, description=entry.run.__doc__)
        entry.arguments(sub)
        sub.set_defaults(run=entry.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    own, passed_on = _divided(list(sys.argv[1:] if argv is None else argv))
    arguments = build_parser().parse_args(own)
    arguments.passed_on = passed_on
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except TomolineError as error:
        print(f"tomoline {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"tomoline {arguments.command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (head, less) has gone; keep Python from complaining while it shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _divided(argv: list[str]) -> tuple[list[str], list[str]]:
    """Part a command's own arguments from those behind `--`, where it passes such on."""
    entry = COMMANDS.get(argv[0]) if argv else None
    if entry is None or not entry.passes_on or "--" not in argv:
        return argv, []
    mark = argv.index("--")
    return argv[:mark], argv[mark + 1 :]


def add_project(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which project folder is meant."""
    parser.add_argument(
        "--project",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="project folder, with config/ and results/ (default: the current one)",
    )


def _survey_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `onboard` and `watch` ask alike."""
    add_project(parser)
    parser.add_argument("--name", required=True, help="the dataset's name")
    parser.add_argument(
        "--voxel-size", type=_positive, metavar="A", help="angstrom; overrides the files' headers"
    )
    parser.add_argument(
        "--contrast",
        choices=("dark", "bright"),
        help="whether particles are darker or brighter than their surroundings "
        "(default: dark, and you are told where a picture looks otherwise)",
    )
    parser.add_argument(
        "--pattern", metavar="GLOB", help="which files of the folders, such as '*_rec.mrc'"
    )
    parser.add_argument(
        "--axes",
        choices=("auto", "xyz", "xzy"),
        default="auto",
        help="axis order of new files; xzy is what IMOD's tilt writes (default: auto)",
    )


def _onboard_arguments(parser: argparse.ArgumentParser) -> None:
    _survey_arguments(parser)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="tomograms or folders")
    parser.add_argument(
        "--truth",
        action="append",
        default=[],
        metavar="TOMOGRAM=FILE[,OCCUPANCY]",
        help="true particles of a tomogram, and its volume of instance ids; may be repeated; "
        "'none' ignores what lies beside the tomograms (default: found by itself)",
    )
    parser.add_argument(
        "--type", choices=("auto", "shrec", "micrographs"), default="auto",
        help="shrec: SHREC'19, '20 or '21 as downloaded, the tomograms only of its folders "
        "(default: auto, which knows such folders too); micrographs: single-particle micrographs "
        "(MRC, TIFF, PNG, JPEG), with --diameter",
    )  # fmt: skip
    parser.add_argument(
        "--pixel-size", type=_positive, metavar="A",
        help="micrographs: angstrom a pixel; overrides the files' headers",
    )  # fmt: skip
    parser.add_argument(
        "--diameter", type=_positive, metavar="A",
        help="micrographs: the particles' diameter in angstrom",
    )  # fmt: skip
    parser.add_argument(
        "--again",
        action="store_true",
        help="look at every file of the dataset again, as after editing its settings by hand",
    )


@command("onboard", _onboard_arguments)
def onboard_command(arguments: argparse.Namespace) -> int:
    """Look at tomograms, or micrographs, and write a dataset's settings and sheet."""
    if arguments.type == "micrographs":
        return _onboard_micrographs(arguments)
    if arguments.diameter or arguments.pixel_size:
        raise InputError(
            "--diameter, --pixel-size", expected="--type micrographs",
            found=f"--type {arguments.type}",
            remedy="add it; for tomograms --voxel-size is the option",
        )  # fmt: skip
    from tomoline.stages.onboard import format_outcome, onboard  # noqa: PLC0415

    request = replace(
        _request(arguments, truth=arguments.truth, again=arguments.again), kind=arguments.type
    )
    outcome = onboard(request, project=arguments.project)
    run = _next_command(arguments.project, arguments.name)
    print(format_outcome(outcome, command=run), end="")
    return 0 if outcome.usable else 1


def _onboard_micrographs(arguments: argparse.Namespace) -> int:
    from tomoline.stages.onboard_micrographs import (  # noqa: PLC0415
        MicrographRequest,
        format_micrographs,
        onboard_micrographs,
    )

    outcome = onboard_micrographs(
        MicrographRequest(
            name=arguments.name, paths=tuple(arguments.paths),
            pixel_size_angstrom=arguments.pixel_size or arguments.voxel_size,
            diameter_angstrom=arguments.diameter, contrast=arguments.contrast,
            pattern=arguments.pattern,
        ),
        project=arguments.project,
    )  # fmt: skip
    run = _next_command(arguments.project, arguments.name)
    print(format_micrographs(outcome, command=run), end="")
    return 0 if outcome.usable else 1


def _request(
    arguments: argparse.Namespace, *, truth: Sequence[str], again: bool = False
) -> Request:
    """What onboarding is asked for, by the arguments and by config.yaml."""
    from tomoline.stages.onboard import Request  # noqa: PLC0415

    return Request(
        name=arguments.name,
        paths=tuple(arguments.paths),
        voxel_size_angstrom=arguments.voxel_size,
        contrast=arguments.contrast,
        pattern=arguments.pattern,
        axes=arguments.axes,
        truth=tuple(truth),
        again=again,
        voxel_range_angstrom=_model_range(arguments.project),
        rescaled=_section(arguments.project, "prepare").get("rescale") != "never",
    )


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "tomoline watch FOLDER [FOLDER ...] --name NAME [options] [-- snakemake's arguments]"
    )
    _survey_arguments(parser)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="FOLDER", help="where tomograms arrive"
    )
    parser.add_argument(
        "--truth", choices=("none",), help="ignore true particles that lie beside the tomograms"
    )
    parser.add_argument(
        "--every", type=_duration, default=60.0, metavar="TIME",
        help="time between looks, in seconds or such as 5m (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--settle", type=_duration, default=120.0, metavar="TIME",
        help="a file is taken when it has not changed for so long (default: 120 seconds)",
    )  # fmt: skip
    parser.add_argument(
        "--once", action="store_true",
        help="take what is there and has settled, run it, and end; for a job that is run by cron",
    )  # fmt: skip
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--until", metavar="HH:MM", type=_until, help="look no more after this time")
    end.add_argument("--for", dest="until", metavar="TIME", type=_duration, help="such as 8h")


@command("watch", _watch_arguments, passes_on=True)
def watch_command(arguments: argparse.Namespace) -> int:
    """Onboard and run tomograms as they arrive in a folder, while the microscope records.

    Files that still grow are left until they have settled. What follows `--` goes to snakemake,
    such as `-- --profile slurm` (default: `--cores all`). A run that has begun is finished before
    the next look; Ctrl-C stops it. A tomogram that failed is tried again when its file changes or
    after `tomoline retry`.
    """
    from tomoline.stages.watch import Plan, watch  # noqa: PLC0415

    plan = Plan(
        request=_request(arguments, truth=[arguments.truth] if arguments.truth else []),
        every_seconds=max(arguments.every, 0.1),
        settle_seconds=arguments.settle,
        once=arguments.once,
        for_seconds=arguments.until,
    )
    if arguments.passed_on:
        plan = replace(plan, arguments=tuple(arguments.passed_on))
    return watch(plan, project=arguments.project)


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("--dataset", metavar="NAME", help="only this one (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")


@command("status", _status_arguments)
def status_command(arguments: argparse.Namespace) -> int:
    """Show where every tomogram stands, stage by stage."""
    from tomoline.stages.status import collect_status, format_status, status_json  # noqa: PLC0415

    datasets = collect_status(arguments.project, dataset=arguments.dataset)
    print(status_json(datasets) if arguments.json else format_status(datasets), end="")
    return 0


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="tomograms, or a pattern in quotes such as '*_lamella3*'",
    )  # fmt: skip
    parser.add_argument("--failed", action="store_true", help="all tomograms that failed")
    parser.add_argument("--dataset", metavar="NAME", help="only of this dataset (default: all)")
    parser.add_argument(
        "--from", dest="stage", metavar="STAGE",
        help="forget this stage and what follows from it, such as cluster or classify "
        "(default: the stage that failed, else the first that is not done)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be forgotten")
    parser.add_argument(
        "--force", action="store_true", help="act although a run seems to be under way"
    )


@command("retry", _retry_arguments)
def retry_command(arguments: argparse.Namespace) -> int:
    """Forget a stage's results for chosen tomograms, so that the next run makes them again.

    Nothing is computed now: type the same snakemake command as before afterwards. Your tomograms
    and settings, other tomograms' results and the records of SLURM jobs are never touched.
    """
    from tomoline.stages.retry import (  # noqa: PLC0415
        Selection,
        format_retry,
        retry,
        touched_datasets,
    )

    selection = Selection(
        names=tuple(arguments.names),
        failed=arguments.failed,
        dataset=arguments.dataset,
        stage=arguments.stage,
    )
    done = retry(
        selection, project=arguments.project, dry_run=arguments.dry_run, force=arguments.force
    )
    run = _next_command(arguments.project, *touched_datasets(done, arguments.project))
    print(format_retry(done, command=run, dry_run=arguments.dry_run), end="")
    return 0


@command("recover", add_project)
def recover_command(arguments: argparse.Namespace) -> int:
    """Clean up after a run that was killed: its cluster jobs, its processes, its lock.

    A new run does this by itself where it can see that the old one is gone. By hand it is needed
    only after one on another machine.
    """
    from tomoline_slurm.driver import recover_here  # noqa: PLC0415

    with contextlib.chdir(arguments.project):
        done = recover_here()
    print("\n".join(done) or "nothing to do: no run was cut off here")
    return 0


def _scores_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("dataset", help="name of a dataset whose sheet names a truth")


@command("scores", _scores_arguments)
def scores_command(arguments: argparse.Namespace) -> int:
    """Show how well a dataset's particles agree with its truth, and where its files are."""
    from tomoline.stages.scores import (  # noqa: PLC0415
        format_files,
        format_scores,
        read_domains,
        read_scores,
    )

    results = arguments.project / "results" / arguments.dataset
    scores = read_scores(results)
    print(format_scores(scores, read_domains(results, scores)))
    print(format_files(results), end="")
    return 0


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("picks", type=Path, metavar="PICKS", help="file or project with the picks")
    parser.add_argument(
        "--dialect",
        required=True,
        metavar="NAME",
        help="the program it is of (docs/coordinates.md)",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="an onboarded dataset")
    parser.add_argument(
        "--tomogram",
        metavar="NAME",
        help="which one, where the file does not say (IMOD, EMAN2, ...)",
    )
    parser.add_argument(
        "--classes", type=_names, default=(), metavar="A,B,...",
        help="names of the classes 1, 2, ..., where the file has only numbers or none",
    )  # fmt: skip
    parser.add_argument(
        "--radius", type=_positive, metavar="A",
        help="the particles' radius in angstrom, where the file has none",
    )  # fmt: skip
    parser.add_argument(
        "--relion-centre", choices=("picker", "cpp"), default="picker",
        help="which of RELION-5's two centres the file counts from (default: picker)",
    )  # fmt: skip
    parser.add_argument(
        "--as-truth", action="store_true",
        help="also name the annotations in the sheet, so that results are compared with them",
    )  # fmt: skip


@command("import", _import_arguments)
def import_command(arguments: argparse.Namespace) -> int:
    """Take picks made in another program as annotations of a dataset's tomograms.

    Every dialect that is exported can be imported. The places are turned into voxels of your
    tomograms and written to config/datasets/<dataset>_annotations/<tomogram>.csv.
    """
    from tomoline.stages.importing import Picks, format_imported, import_picks  # noqa: PLC0415

    picks = Picks(
        path=arguments.picks,
        dialect=arguments.dialect,
        dataset=arguments.dataset,
        tomogram=arguments.tomogram,
        class_names=arguments.classes,
        radius_angstrom=arguments.radius,
        relion_centre=arguments.relion_centre,
        as_truth=arguments.as_truth,
    )
    done = import_picks(picks, project=arguments.project)
    print(format_imported(done), end="")
    return 0 if done.count and not done.unmatched else 1


def _review_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("dataset", help="a dataset that has been run")
    parser.add_argument(
        "--number", type=_count, default=100, metavar="N", help="how many picks (default: 100)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="where to write (default: results/<dataset>/review)",
    )  # fmt: skip
    parser.add_argument(
        "--random", type=_share, default=0.2, metavar="SHARE",
        help="share of them that is drawn at random, a fair sample (default: 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=1, metavar="K", help="of that drawing (default: 1)"
    )


@command("review", _review_arguments)
def review_command(arguments: argparse.Namespace) -> int:
    """Choose the picks that a person should look at, with pictures, as a list and a page.

    The page (review.html) needs no network; decide there or in review.csv, then `tomoline adopt`.
    """
    from tomoline.stages.review import format_review, review  # noqa: PLC0415

    done = review(
        arguments.dataset,
        project=arguments.project,
        number=arguments.number,
        folder=arguments.output,
        seed=arguments.seed,
        random_share=arguments.random,
    )
    print(format_review(done), end="")
    return 0


def _adopt_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("dataset", help="the dataset that was reviewed")
    parser.add_argument("review", type=Path, metavar="REVIEW", help="review.csv, filled in")
    parser.add_argument(
        "--new-class", action="append", default=[], metavar="NAME",
        help="a class that decisions may name although no model knows it; may be repeated",
    )  # fmt: skip


@command("adopt", _adopt_arguments)
def adopt_command(arguments: argparse.Namespace) -> int:
    """Take the decisions of a review as labels, to learn from and to compare with.

    They join what `tomoline import` brought, in config/datasets/<dataset>_annotations/. A later
    decision about a pick replaces the earlier one; doing it twice changes nothing.
    """
    from tomoline.stages.adopt import adopt, format_adopted  # noqa: PLC0415

    done = adopt(
        arguments.dataset,
        arguments.review,
        project=arguments.project,
        new_classes=arguments.new_class,
    )
    print(format_adopted(done), end="")
    return 0 if done.decisions else 1


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of picks")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


@command("doctor", _doctor_arguments)
def doctor_command(arguments: argparse.Namespace) -> int:
    """Say what this machine has, what will not work, and the remedy."""
    from tomoline.stages.doctor import (  # noqa: PLC0415
        checks_json,
        examine,
        exit_code,
        format_checks,
    )

    checks = examine(arguments.project)
    print(checks_json(checks) if arguments.json else format_checks(checks), end="")
    return exit_code(checks)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("name", help="a folder of resources/models, or a path to one")
    parser.add_argument(
        "--heads", nargs="+", metavar="HEAD",
        help="of a picker: write it with these heads only, into the folder --output",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="PATH", help="the folder to be written")


@command("model", _model_arguments)
def model_command(arguments: argparse.Namespace) -> int:
    """Show a model's card, checked against its weights; or write a picker with fewer heads."""
    # torch takes seconds to import, and the other commands must work without it
    from tomoline.networks.pickers import is_picker, write_with_heads  # noqa: PLC0415
    from tomoline.stages.model import (  # noqa: PLC0415
        examine_model,
        format_model,
        format_picker,
    )

    given = Path(arguments.name)
    folder = given if given.exists() else _models_folder(arguments.project) / given
    if (arguments.heads is None) != (arguments.output is None):
        raise InputError(
            "tomoline model", expected="--heads and --output, or neither",
            found="one of them", remedy="give both: which heads to keep, and the new folder",
        )  # fmt: skip
    if arguments.output is not None:
        write_with_heads(folder, arguments.heads, arguments.output)
        folder = arguments.output
    if is_picker(folder):
        print(format_picker(folder), end="")
        return 0
    facts = examine_model(folder)
    print(format_model(facts), end="")
    return 1 if facts.disagreements else 0


def _subtomograms_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model", action="append", metavar="NAME", dest="models",
        help="classifier, in resources/models or a path; several name together (default: "
        "dsmnet-classifier)",
    )  # fmt: skip
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", type=Path, required=True, metavar="PATH", help="to be written")
    take = actions.add_parser(
        "take", parents=[model, output], help="take over another program's, as a model reads them"
    )
    take.add_argument(
        "source", type=Path, help="a STAR file (RELION, Warp, M), an MRC stack, or a folder"
    )
    take.add_argument(
        "--voxel-size", type=_positive, metavar="A", help="angstrom; overrides what the files say"
    )
    take.add_argument(
        "--contrast", choices=("dark", "bright"), default="dark",
        help="of the particles; RELION's and Warp's own subtomograms are bright (default: dark)",
    )  # fmt: skip
    name = actions.add_parser("name", parents=[model, output], help="name each, into a table (CSV)")
    name.add_argument("source", type=Path, help="an HDF5 file of `take`, or of the workflow")
    give = actions.add_parser(
        "give", parents=[output], help="write them as a folder with a STAR file"
    )
    give.add_argument("source", type=Path, help="an HDF5 file of `take`, or of the workflow")
    give.add_argument(
        "--table", type=Path, metavar="CSV",
        help="classes and scores: the table of `name`, or particles.csv, of which the accepted "
        "particles are written",
    )  # fmt: skip


@command("subtomograms", _subtomograms_arguments)
def subtomograms_command(arguments: argparse.Namespace) -> int:
    """Take over subtomograms of other programs, name them, write them for other programs.

    For the workflow's own particles keep theirs (`keep: [subtomograms]`).
    """
    from tomoline.log import job_log  # noqa: PLC0415
    from tomoline.networks.cards import load_card  # noqa: PLC0415
    from tomoline.stages.given_subtomograms import (  # noqa: PLC0415
        Taken,
        give_subtomograms,
        name_subtomograms,
        take_subtomograms,
    )

    if arguments.action == "give":
        written = give_subtomograms(arguments.source, arguments.output, table=arguments.table)
        print(f"wrote {written}")
        return 0
    names = arguments.models or ["dsmnet-classifier"]
    given = [(Path(name), _models_folder(arguments.project) / name) for name in names]
    folders = [own if own.exists() else known for own, known in given]
    with job_log(None):
        if arguments.action == "name":
            table = name_subtomograms(arguments.source, folders, arguments.output)
            counts = table["class"].value_counts()
            print("\n".join(f"{number:6d} {name}" for name, number in counts.items()))
            return 0
        card = load_card(folders[0])
        taken = Taken(
            box_vox=card.box_vox or 32, voxel_size_angstrom=card.voxel_size_angstrom,
            given_voxel_size_angstrom=arguments.voxel_size, bright=arguments.contrast == "bright",
        )  # fmt: skip
        take_subtomograms(arguments.source, arguments.output, taken)
    return 0


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument("settings", type=Path, help="a YAML file with a `train` section")


@command("train", _train_arguments)
def train_command(arguments: argparse.Namespace) -> int:
    """Train a network; under `torchrun`, with one process for each GPU.

    It is what `snakemake train` runs, for several GPUs: `torchrun --nproc-per-node=4 --no-python
    tomoline train config/training/FILE.yaml`.
    """
    from tomoline.log import job_log  # noqa: PLC0415
    from tomoline.settings import TrainSettings, validated  # noqa: PLC0415
    from tomoline.stages.train import output_paths, run  # noqa: PLC0415

    text = arguments.settings.read_text() if arguments.settings.is_file() else ""
    section = (yaml.safe_load(text) or {}).get("train")
    if section is None:
        raise InputError(
            arguments.settings, expected="a YAML file with a `train` section",
            found="no such section" if text else "no such file or an empty one",
            remedy="start from a file of config/training",
        )  # fmt: skip
    settings = validated(TrainSettings, section, source=arguments.settings)
    folder = arguments.project / "results" / "models"
    outputs = output_paths(settings, folder)
    with job_log(folder / settings.name / "logs" / "train.log"):
        run(
            {"densities": arguments.project / "resources" / "densities"}, outputs,
            settings=settings, work=str(folder / settings.name / "checkpoints"),
        )  # fmt: skip
    print("\n".join(str(path) for path in outputs.values()))
    return 0


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="a localizer and, if wanted, a classifier: folders of resources/models, or paths",
    )  # fmt: skip
    parser.add_argument(
        "--folders", nargs="+", type=Path, default=[], metavar="FOLDER",
        help="tomograms with truth in SHREC layout, none of which was trained on",
    )  # fmt: skip
    parser.add_argument(
        "--simulate", type=int, default=0, metavar="N",
        help="simulate so many tomograms instead, by the localizer's training conditions",
    )  # fmt: skip
    parser.add_argument(
        "--grey", type=int, metavar="N",
        help="simulate so many more, of which no network sees anything: seconds each, for the "
        "range of usual spectra (default: 120 beside --simulate, else 0)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=9_000_001, help="seed of the first one (default: %(default)s)"
    )


@command("calibrate", _calibrate_arguments)
def calibrate_command(arguments: argparse.Namespace) -> int:
    """Measure what a model's scores and probabilities are worth, and write it into its card.

    The temperature of class probabilities, the expected precision of scores, and what kind of
    tomogram the model knows; weights, threshold and bandwidth stay as they are. Takes minutes a
    tomogram without a GPU.
    """
    from tomoline.log import job_log  # noqa: PLC0415
    from tomoline.networks.cards import load_card  # noqa: PLC0415
    from tomoline.stages.confidence import (  # noqa: PLC0415
        MORE_TOMOGRAMS,
        calibrate_models,
        format_calibration,
        from_folders,
        simulated,
    )

    seeded = arguments.simulate > 0
    grey = MORE_TOMOGRAMS * seeded if arguments.grey is None else arguments.grey
    if (bool(arguments.folders) and seeded) or not (arguments.folders or seeded or grey):
        raise InputError(
            "arguments", expected="either --folders FOLDER... or --simulate N (or --grey N alone)",
            found="both" if arguments.folders else "neither", remedy="give one of them",
        )  # fmt: skip
    given = [
        Path(name) if Path(name).exists() else _models_folder(arguments.project) / name
        for name in arguments.models
    ]
    cards = [load_card(folder) for folder in given]
    card = next((c for c in cards if c.role == "localizer"), cards[0])
    densities, first = arguments.project / "resources" / "densities", arguments.seed
    between = first + arguments.simulate
    if arguments.folders:
        tomograms = from_folders(card, arguments.folders)
        sources = ["SHREC folders " + ", ".join(folder.name for folder in arguments.folders)]
    else:
        tomograms = simulated(card, densities, count=arguments.simulate, seed=first, others=cards)
        sources = [f"simulated tomograms, seeds {first} to {between - 1}"] * seeded
    if grey:
        sources.append(f"grey values of simulated tomograms, seeds {between} to "
                       f"{between + grey - 1}")  # fmt: skip
    more = simulated(card, densities, count=grey, seed=between, others=cards)
    with job_log(None):
        source = "; ".join(sources) + "; none was trained on"
        written = calibrate_models(given, tomograms, source=source, more=more)
    print(format_calibration(written), end="")
    return 0


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(), metavar="FOLDER",
        help="where to make it (default: the current folder)",
    )  # fmt: skip


@command("init", _init_arguments)
def init_command(arguments: argparse.Namespace) -> int:
    """Make a project folder of your own, with a copy of the settings."""
    from tomoline.stages.project import init_project  # noqa: PLC0415

    made = init_project(arguments.folder)
    print("\n".join(f"  {line}" for line in made) or "  nothing was missing")
    print(f"\nNext:\n  cd {arguments.folder}\n  tomoline onboard PATH... --name NAME")
    return 0


def _init_profile_arguments(parser: argparse.ArgumentParser) -> None:
    add_project(parser)
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER",
        help="where to write it: a project, or a folder for the profile (default: this project's "
        "slurm/, so that `snakemake --profile slurm` finds it)",
    )  # fmt: skip
    parser.add_argument(
        "--user", action="store_true", help="for all your projects, below ~/.config/snakemake"
    )
    parser.add_argument("--account", metavar="NAME", help="the SLURM account that is charged")
    parser.add_argument(
        "--cpu-partition", metavar="NAME", help="for jobs without GPU (default: chosen)"
    )
    parser.add_argument(
        "--gpu-partition", metavar="NAME", help="for the networks (default: chosen); none: use CPUs"
    )
    parser.add_argument(
        "--from-file", type=Path, metavar="FILE",
        help="text that sinfo printed on the cluster, where this machine has no sinfo",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace a profile; the old one is kept as .bak"
    )


@command("init-profile", _init_profile_arguments)
def init_profile_command(arguments: argparse.Namespace) -> int:
    """Write the SLURM profile for this cluster, with the partitions that `sinfo` lists."""
    from tomoline.stages.site_profile import (  # noqa: PLC0415
        Wishes,
        format_written,
        init_profile,
    )

    wishes = Wishes(
        account=arguments.account,
        cpu_partition=arguments.cpu_partition,
        gpu_partition=arguments.gpu_partition,
        from_file=arguments.from_file,
    )
    written = init_profile(
        wishes,
        project=arguments.project,
        folder=arguments.folder,
        user=arguments.user,
        force=arguments.force,
    )
    print(format_written(written), end="")
    return 0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a length of a voxel in angstrom")
    return value


def _duration(text: str) -> float:
    from tomoline.stages.watch import seconds_of  # noqa: PLC0415

    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _until(text: str) -> float:
    from tomoline.stages.watch import seconds_until  # noqa: PLC0415

    try:
        return seconds_until(text, now=datetime.now())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _config(project: Path) -> dict[str, object]:
    """Return config.yaml as it stands; empty where it is not there or is not YAML.

    The commands here only take hints from it; the workflow is what checks it.
    """
    try:
        raw = yaml.safe_load((project / "config" / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _section(project: Path, name: str) -> dict[str, object]:
    section = _config(project).get(name)
    return section if isinstance(section, dict) else {}


def _models_folder(project: Path) -> Path:
    from tomoline.settings import ModelsSettings  # noqa: PLC0415

    given = _section(project, "models").get("folder")
    return project / str(given or ModelsSettings().folder)


def _model_range(project: Path) -> tuple[float, float] | None:
    """Voxel sizes that the configured localizer reads; None where it is not installed yet."""
    from tomoline.networks.cards import CARD, load_card  # noqa: PLC0415
    from tomoline.settings import ModelsSettings, model_path  # noqa: PLC0415

    given = _section(project, "models").get("localizer") or ModelsSettings().localizer
    folder = project / model_path(str(given), str(_section(project, "models").get("folder")
                                                  or ModelsSettings().folder))  # fmt: skip
    return load_card(folder).voxel_size_range_angstrom if (folder / CARD).is_file() else None


def _next_command(project: Path, *names: str) -> str:
    """Return the command that runs the datasets, as short as config.yaml allows."""
    datasets = _config(project).get("datasets")
    folder = "" if project == Path() else f" --directory {project}"
    chosen = "" if datasets == [*names] else f" --config datasets='[{','.join(names)}]'"
    return f"snakemake --cores all{folder}{chosen}"


if __name__ == "__main__":
    sys.exit(main())
