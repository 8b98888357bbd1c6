"""The command line. Whatever needs torch is imported inside a command, so that --help answers at once."""

import difflib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

if TYPE_CHECKING:
    from galvanic.studies.directory import RunDirectory
    from galvanic.studies.grid import Engine, StudyDirectory

console = Console(soft_wrap=True, emoji=False)
errors = Console(stderr=True, soft_wrap=True, emoji=False)

EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 130, 143


class OneLineErrors(TyperGroup):
    """Commands whose options are refused as everything else is: in one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        alone = options.pop("standalone_mode", True)
        try:
            code = super().main(*args, **options | {"standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            code, message, context = EXIT_USAGE, error.format_message(), getattr(error, "ctx", None)
            if message:  # there is none where the help was printed
                complain(f"{message} (see {context.command_path} --help)" if context else message)
        if alone:
            sys.exit(code)
        return code


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Neural networks that survive analog hardware: simulate it, train for it, prove on unseen chips what was gained.\n\n"
    "Begin with [bold]galvanic run[/bold]: three minutes on two cores, no data needed, a report at the end.",
)


class Terminated(BaseException):
    """SIGTERM, to be treated as Ctrl-C is."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that the user can do something about become one line and exit code 2; others keep their traceback."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        fail(str(error) if not isinstance(error, OSError) or error.errno is None else f"{error.filename or 'file'}: {error.strerror}")


def complain(message: str) -> None:
    """One line on standard error, whatever a name or a path in it holds."""
    parts = "".join(c if c.isprintable() else "\n" for c in message).split("\n")
    errors.print(f"[bold red]error:[/bold red] {escape(' '.join(filter(None, parts)))}", highlight=False)


def fail(message: str) -> Never:
    """One line on standard error, and exit code 2."""
    complain(message)
    raise typer.Exit(EXIT_USAGE)


def _version(wanted: bool) -> None:
    if wanted:
        from galvanic import __version__

        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table is not worth a crash where its signs cannot be written


@app.command()
def run(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="digits, gaussians (come with it) | mnist | fashion-mnist | cifar10 | cifar100 | cifar100-coarse (from --root) | a .npz "
            "file with x_train, y_train, x_test and y_test: images (n, channels, height, width) or vectors (n, features)."
        ),
    ] = "digits",
    root: Annotated[Path | None, typer.Option(help="Folder with the published files of mnist, fashion-mnist, cifar10 or cifar100.")] = None,
    partial_test: Annotated[
        bool, typer.Option("--partial-test", help="Accept a test set that is not complete; the report prints how many.")
    ] = False,
    train_samples: Annotated[int | None, typer.Option(min=1, help="Train on a stratified subset of this size.")] = None,
    model: Annotated[
        str, typer.Option(help="cnn (small, with batch norm) | FILE.py:NAME, a class, function or module of yours; the file is run.")
    ] = "cnn",
    profile: Annotated[str, typer.Option(help="The hardware: a name out of `galvanic profiles`, or a .toml file.")] = "pcm",
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="digital | ptq | noise, or any of `galvanic recipes`; repeat for several. Default: these three."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings of each recipe, from --seed on.")] = 2,
    chips: Annotated[int, typer.Option(min=1, help="How many unseen chips each trained network is put on.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training set, the same for every recipe.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Most images a step.")] = 64,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of torch. Default: 1 for digits, whose network is too small to be shared; else as torch has it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/DATA-PROFILE, numbered.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder; it keeps its settings.")] = None,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints of a training.")] = 2.0,
) -> None:
    """Train a network by three recipes, put each on unseen chips, let them age, and write a report.

    [bold]digital[/bold] trains as usual and maps the weights on the chip; [bold]ptq[/bold] also tunes the converters afterwards;
    [bold]noise[/bold] trains on simulated chips. The folder of the run holds configuration, rows (rows.jsonl), checkpoints, trained models
    and report.html. Ctrl-C, a crash or a lost machine cost at most the last two seconds: `--resume FOLDER` ends with the same bits.

    Examples:

      galvanic run

      galvanic run --profile generic-4bit --recipe digital --recipe noise --seeds 5

      galvanic run --data mnist --root ~/data --epochs 4

      galvanic run --model my.py:Net --data my.npz --profile my-chip.toml
    """
    with one_line_errors():
        if resume is not None:
            _refuse_other_settings(context)
        _import()
        folder = resume or out or _free_folder(data, profile)
        with _interruptible(folder):
            if resume is None:
                _refuse_occupied(folder)
            directory = _open(folder) if resume is not None else _settle(folder, locals())
            _execute(directory, checkpoint_every, new=resume is None)


def _import() -> None:
    """Import what takes a second. Torch loses an exception that meets it there, and is broken then: a signal ends the process at once."""

    def end(number: int, _: Any) -> Never:
        os.write(2, b"\nstopped; nothing was begun\n")
        os._exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        import galvanic.report
        import galvanic.studies.directory  # noqa: F401
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_other_settings(context: typer.Context, what: str = "run", allowed: tuple[str, ...] = ("--checkpoint-every",)) -> None:
    """A resumed run has its settings: others would be ignored in silence."""
    given = [typed for typed in _typed(context) if typed not in ("--resume", *allowed)]
    if given:
        fail(f"--resume keeps the settings of the {what}; leave out {given[0]}")


def _typed(context: typer.Context) -> list[str]:
    """The options and arguments that were typed."""
    sources = {p: context.get_parameter_source(p.name or "") for p in context.command.params}
    given = [p for p, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return [p.opts[0] if p.opts[0].startswith("-") else context.params[p.name or ""] for p in given]


def _free_folder(data: str, profile: str) -> Path:
    from galvanic.studies.directory import free_folder

    return free_folder(data, Path(profile).stem)


def _open(folder: Path) -> "RunDirectory":
    from galvanic.studies.directory import RunDirectory

    return RunDirectory.open(folder)


def _settle(folder: Path, given: dict[str, Any]) -> "RunDirectory":
    """The run that the options describe."""
    import torch

    from galvanic.studies.directory import RunDirectory
    from galvanic.studies.settings import FIRST_TEST_CHIP, new_settings
    from galvanic.train import MAIN, RECIPES

    for name in given["recipe"] or ():
        if name not in RECIPES:
            close = difflib.get_close_matches(name, RECIPES, n=1)
            fail(f"unknown recipe {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(RECIPES)}"))
    settings = new_settings(
        **{name: given[name] for name in ("data", "partial_test", "train_samples", "model", "profile", "epochs", "batch")},
        root=None if given["root"] is None else str(given["root"]),
        recipes=list(dict.fromkeys(given["recipe"] or MAIN)),
        seeds=list(range(given["seed"], given["seed"] + given["seeds"])),
        chips=list(range(FIRST_TEST_CHIP, FIRST_TEST_CHIP + given["chips"])),
        threads=given["threads"] or (1 if given["data"] == "digits" else torch.get_num_threads()),
    )
    return RunDirectory(folder, settings)


def _execute(directory: "RunDirectory", checkpoint_every: float, *, new: bool) -> None:
    from galvanic.report import write
    from galvanic.storage import lock

    data = directory.settings.load_data()
    with lock(directory.folder):
        if new:
            _refuse_occupied(directory.folder)  # it may have been taken in the meantime
            directory.create(data, shlex.join(["galvanic", *sys.argv[1:]]))
        study = directory.study(data, checkpoint_every)
        with _progress(sum(cell.effort for cell in study.cells())) as advance:
            directory.execute(study, advance)
        page = write(directory.folder)
    _print_table(directory)
    console.print(f"\nreport: [bold]{escape(str(page))}[/bold]", highlight=False)


def _refuse_occupied(folder: Path) -> None:
    """A new run does not mix with the rows and checkpoints of another."""
    from galvanic.studies.directory import occupied

    if (folder / "config.json").exists():
        fail(f"{folder} holds a run already; --resume {shlex.quote(str(folder))} goes on with it, or choose another --out")
    if occupied(folder):
        fail(f"{folder} holds parts of a run, but not its config.json; choose another --out")


@contextmanager
def _interruptible(folder: Path, verb: str = "run") -> Iterator[None]:
    """Ctrl-C and SIGTERM leave a run that can go on, and say how."""

    def terminate(*_: Any) -> Never:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        begun = (folder / "config.json").is_file()
        hint = f"go on with: [bold]galvanic {verb} --resume {escape(shlex.quote(str(folder)))}[/bold]" if begun else "nothing was begun"
        errors.print(f"\nstopped; {hint}", highlight=False)
        raise typer.Exit(EXIT_INTERRUPTED if isinstance(stop, KeyboardInterrupt) else EXIT_TERMINATED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(total: float) -> Iterator[Callable[[str, float], None]]:
    """A bar with the time that is left; nothing where no one watches."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    elapsed, left = (TaskProgressColumn(), TimeElapsedColumn()), (TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description:<28}"), BarColumn(), *elapsed, *left)
    with Progress(*columns, console=errors, disable=not errors.is_terminal, speed_estimate_period=60) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda name, effort: bar.update(task, description=name, advance=effort)


def _print_table(directory: "RunDirectory") -> None:
    """Accuracy by recipe and age, without and with compensation."""
    import statistics

    import rich.box
    from rich.table import Table
    from rich.text import Text

    settings = directory.settings
    cells: dict[tuple[str, str, float], list[float]] = {}
    for row in directory.rows():
        if row["kind"] == "age":
            cells.setdefault((row["recipe"], row["compensation"], row["age_s"]), []).append(100 * row["accuracy"])
    trainings = f"{len(settings.seeds)} training{'s' if len(settings.seeds) > 1 else ''} x {len(settings.chips)} unseen chips"
    title = f"Accuracy in % on {settings.data}, profile {settings.profile['name']}, by age: mean±standard deviation over {trainings}"
    table = Table(title=Text(title), title_justify="left", title_style="", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("recipe", "compensation", *map(_age, settings.ages_s)):
        table.add_column(column, justify="left" if column in ("recipe", "compensation") else "right", no_wrap=True)
    for recipe, compensation in dict.fromkeys((r, c) for r, c, _ in cells):
        values = [cells[recipe, compensation, age_s] for age_s in settings.ages_s]
        table.add_row(recipe, compensation, *(f"{statistics.fmean(v):.1f}±{statistics.pstdev(v):.1f}" for v in values))
    console.print(table)


def _age(seconds: float) -> str:
    for unit, name in ((365 * 86400.0, "y"), (86400.0, "d"), (3600.0, "h")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


@app.command()
def study(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which; without one, all are listed.")] = None,
    data: Annotated[str | None, typer.Option(help="Another data set than the study's, named as for `galvanic run`.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the published files of the data set.")] = None,
    partial_test: Annotated[
        bool, typer.Option("--partial-test", help="Accept a test set that is not complete; the report prints how many.")
    ] = False,
    train_samples: Annotated[int | None, typer.Option(min=1, help="Size of the stratified training subset.")] = None,
    test_samples: Annotated[int | None, typer.Option(min=1, help="Size of the stratified test subset.")] = None,
    shrink: Annotated[int | None, typer.Option(min=1, help="Factor by which images are averaged down.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the first stage of the residual network.")] = None,
    profile: Annotated[str | None, typer.Option(help="The hardware: a name out of `galvanic profiles`, or a .toml file.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; repeat for several.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="Only this condition; repeat for several.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings of each arm.")] = 5,
    chips: Annotated[int, typer.Option(min=1, help="How many unseen chips each trained network is put on.")] = 10,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training set, the same for every arm.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, of one thread each. Default: one a core.")] = None,
    engine: Annotated[str, typer.Option(help="processes (this machine) | ray (a cluster; needs galvanic[ray]).")] = "processes",
    out: Annotated[Path | None, typer.Option(help="Folder of the study. Default: studies/NAME, numbered.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the study in this folder; it keeps its settings.")] = None,
) -> None:
    """Compare many ways to train, under one protocol, with intervals and verdicts.

    Every arm has the same data, order, network, optimiser and number of steps; every trained network is put on the same unseen chips and
    measured under the same conditions. The folder holds configuration, rows (rows.jsonl), what they say (summary.jsonl) and report.html.
    A study that is killed goes on with `--resume` at the cell it was at.

    Examples:

      galvanic study

      galvanic study survival --root ~/data

      galvanic study ablation --seeds 2 --chips 2 --epochs 3 --arm tuned --arm ours --condition "level 1"

      galvanic study --resume studies/survival --engine ray
    """
    with one_line_errors():
        if resume is not None:
            _refuse_other_settings(context, "study", ("--workers", "--engine"))
        elif name is None:
            if _typed(context):
                fail(f"{_typed(context)[0]} of which study? `galvanic study` lists them")
            _print_studies()
            return
        _import()
        from galvanic.studies.grid import StudyDirectory, engine_named, study_settings

        chosen = engine_named(engine)
        given = {key: value for key, value in locals().items() if key in _STUDY_CHOICES}
        given["root"] = None if root is None else str(root.expanduser())
        if resume is not None:
            directory = StudyDirectory.open(resume)
        else:
            assert name is not None
            settings = study_settings(name, seeds=seeds, chips=chips, arms=arm or (), conditions=condition or (), **given)
            directory = StudyDirectory(out or _free_study(name), settings)
        with _interruptible(directory.folder, "study"):
            _execute_study(directory, workers or os.cpu_count() or 1, chosen, new=resume is None)


_STUDY_CHOICES = ("data", "root", "partial_test", "train_samples", "test_samples", "shrink", "width", "profile", "epochs")


def _print_studies() -> None:
    from galvanic.studies.grid import study_settings
    from galvanic.studies.protocol import STUDIES

    for one in STUDIES.values():
        settings = study_settings(one.name)
        console.print(f"[bold]{one.name}[/bold]  {escape(one.summary)}", highlight=False)
        console.print(f"  {settings.data} on {settings.profile['name']}; arms: {', '.join(one.arms)}\n", highlight=False)
    console.print("`galvanic study NAME` runs one; `galvanic recipes` says what most arms do.", highlight=False)


def _free_study(name: str) -> Path:
    from galvanic.studies.directory import occupied

    candidates = (Path("studies") / stem for stem in (name, *(f"{name}-{n}" for n in range(2, 10000))))
    return next(path for path in candidates if not occupied(path))


def _execute_study(directory: "StudyDirectory", workers: int, engine: "Engine", *, new: bool) -> None:
    from galvanic.report import write
    from galvanic.storage import lock
    from galvanic.studies.trial import Trial

    if new:
        _refuse_occupied(directory.folder)
    data = directory.settings.load_data()
    with lock(directory.folder):
        if new:
            _refuse_occupied(directory.folder)  # it may have been taken in the meantime
            directory.create(data, shlex.join(["galvanic", *sys.argv[1:]]))
        cells = Trial(directory.settings, data, directory.folder).cells()
        with _progress(sum(cell.effort for cell in cells)) as advance:
            directory.execute(advance, workers=workers, engine=engine)
        page = write(directory.folder)
    _print_verdicts(directory)
    console.print(f"\nreport: [bold]{escape(str(page))}[/bold]", highlight=False)


def _print_verdicts(directory: "StudyDirectory") -> None:
    """Accuracy of every arm under every condition of the first few, with the verdict against the baseline."""
    import rich.box
    from rich.table import Table
    from rich.text import Text

    summary = directory.summary()
    verdicts = {(r["arm"], r["condition"]): r["verdict"] for r in summary if r["kind"] == "comparison"}
    means = {(r["arm"], r["condition"]): r for r in summary if r["kind"] == "interval" and r["metric"] == "accuracy"}
    s = directory.settings
    shown = s.conditions[:7]
    signs = {"better": " +", "worse": " -", "no difference shown": "  "}
    trainings = f"{len(s.seeds)} training{'s' if len(s.seeds) > 1 else ''} x {len(s.chips)} unseen chips"
    title = f"Accuracy in %, {trainings}; + better, - worse than the baseline, after correction"
    table = Table(title=Text(title), title_justify="left", title_style="", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    for column in shown:
        table.add_column(column, justify="right")
    for arm in s.arms:
        cells = [
            f"{100 * means[arm, c]['mean']:.1f}{signs.get(verdicts.get((arm, c), ''), '  ')}" if (arm, c) in means else "" for c in shown
        ]
        table.add_row(arm, *cells)
    console.print(table)


@app.command()
def recipes() -> None:
    """List the ways to train that come with galvanic."""
    from rich.table import Column, Table

    from galvanic.train import RECIPES

    table = Table(Column("recipe", no_wrap=True), "what it does")
    for one in RECIPES.values():
        table.add_row(one.name, one.summary)
    console.print(table)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a run or a study, finished or not.")]) -> None:
    """Write the report of a run or a study again, from its rows."""
    from galvanic.report import write

    with one_line_errors():
        console.print(f"report: [bold]{escape(str(write(folder)))}[/bold]", highlight=False)


@app.command()
def profiles() -> None:
    """List the hardware that comes with galvanic."""
    from rich.table import Table

    from galvanic.profile import load_profile, profile_names

    table = Table("profile", "what it is", "tile", "effects")
    for name in profile_names():
        p = load_profile(name)
        effects = [type(e).__name__ for side in (p.input, p.weight, p.output) for e in side]
        table.add_row(name, p.summary, f"{p.rows or 'any'} x {p.columns or 'any'}", ", ".join(effects) or "none")
    console.print(table)
    console.print("`galvanic show NAME` draws one; your own is a TOML file: start from `galvanic show NAME --toml`.", highlight=False)


@app.command()
def show(
    profile: Annotated[str, typer.Argument(help="A name out of `galvanic profiles`, or a .toml file.")],
    out: Annotated[Path | None, typer.Option(help="Where the drawing goes; .svg, .png or .pdf. Default: NAME.svg here.")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print it as TOML instead, to start a profile of your own.")] = False,
) -> None:
    """Show a kind of hardware: every number with unit and source, and a plot of each effect."""
    from galvanic.profile import load_profile, to_toml

    with one_line_errors():
        chosen = load_profile(profile)
        if toml:
            print(to_toml(chosen), end="")
            return
        from galvanic.studies.portrait import draw, facts

        page = draw(chosen, out or Path(f"{Path(profile).name.removesuffix('.toml')}.svg"))
        _print_facts(chosen.name, chosen.summary, facts(chosen))
        console.print(f"plots: [bold]{escape(str(page))}[/bold]", highlight=False)


def _print_facts(name: str, summary: str, rows: list[tuple[str, str, str, list[tuple[str, str]]]]) -> None:
    from rich.table import Table

    console.print(f"[bold]{escape(name)}[/bold]  {escape(summary)}", highlight=False)
    for side, effect, source, numbers in rows:
        console.print(f"\n[bold]{side}[/bold]" + (f": {effect}" if effect else ""), highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        for number in numbers:
            table.add_row(*map(escape, number))
        console.print(table)
        if source:
            console.print(f"  [dim]{escape(source)}[/dim]", highlight=False)


if __name__ == "__main__":
    app()
