"""`caseback`: the table of commands, and the one place where an error becomes an exit code.

A command group lives in its own file and is imported when it is called; the help is printed from the table below, so that it needs
neither torch nor transformers. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 the answer is no (a check that failed), 2 the request could not be carried out, said in one sentence, 130 stopped
with Ctrl-C. A traceback is a defect of ours.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from caseback.cli.heat import safe
from caseback.core.errors import CasebackError
from caseback.core.memory import TOO_MUCH, ran_out

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "audit": ("caseback.cli.audit:audit", "Examine a model with every method, in the minutes given."),
    "circuit": ("caseback.cli.circuit:circuit", "Find, check and draw the circuit behind a task."),
    "task": ("caseback.cli.task:app", "Tasks: list them, check them on a model, export and import them."),
    "experiment": (
        "caseback.cli.experiment:app",
        "Experiments: positions, schemas, exact patching.",
    ),
    "relation": ("caseback.cli.relation:app", "Relations as linear maps: judge one, list them."),
    "attribute": ("caseback.cli.reading:attribute", "What a relation reads in every state of a prompt."),
    "lens": ("caseback.cli.reading:lens", "What every layer would say next."),
    "tune-lens": ("caseback.cli.tuned:tune_lens", "Train a lens that says early what the model says late."),
    "patch": ("caseback.cli.reading:patch", "Which layers and positions carry a task's answer."),
    "paths": ("caseback.cli.reading:paths", "Through which later heads a head matters."),
    "scrub": ("caseback.cli.reading:scrub", "Whether a hypothesis says all that matters: causal scrubbing."),
    "dla": ("caseback.cli.reading:dla", "Which heads, MLPs and features write a task's answer."),
    "heads": ("caseback.cli.heads:heads", "Previous-token, duplicate, induction and copying heads."),
    "attention": ("caseback.cli.heads:attention", "Where heads look in a prompt, and what they take from there."),
    "weights": ("caseback.cli.heads:weights", "What heads and neurons read and write, from their weights alone."),
    "attribute-input": ("caseback.cli.reading:attribute_input", "Which tokens of a prompt the answer comes from."),
    "claim": ("caseback.cli.claim:app", "Claims about parts of a model: write one down, test it, see how it stands."),
    "schema": ("caseback.cli.schema:app", "Schemas: induce, propose and apply the spans of a task."),
    "model": ("caseback.cli.model:app", "Models: sites, families, and the identities that must hold."),
    "exchange": (
        "caseback.cli.exchange:app",
        "Circuits in the JSON of EAP-IG and MIB: write, read.",
    ),
    "sweep": ("caseback.cli.sweep:sweep", "Many studies from one file, in several processes."),
    "runs": ("caseback.cli.runs:runs", "List the runs of a study folder."),
    "show": ("caseback.cli.runs:show", "Print a run."),
    "report": ("caseback.cli.runs:report", "Write a run's page and print where it is."),
    "resume": ("caseback.cli.runs:resume", "Go on with a run that was stopped."),
    "table": ("caseback.cli.casebook:table", "A run's tables as CSV or JSON Lines."),
    "compare": ("caseback.cli.casebook:compare", "What differs between two runs."),
    "export": ("caseback.cli.casebook:export", "Write a run to one file, to send it."),
    "import": ("caseback.cli.casebook:import_", "Take in a run from such a file."),
    "view": ("caseback.cli.view:view", "The casebook in a browser: runs, comparisons, prompts, new studies."),
    "gc": ("caseback.cli.casebook:gc", "Delete what a study folder can do without."),
}
"""Command → where it is ("module:attribute", a typer app or a function) and its line in the help."""


class _Lazy(TyperGroup):
    """The top group: commands are listed from the table and imported when asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            ctx.fail(f"there is no command {cmd_name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        module, attribute = COMMANDS[cmd_name][0].split(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer()
            found.command()(function)
        # rich's markup doubles the time of a help page; completion belongs to the top command
        found.rich_markup_mode = None
        found._add_completion = False
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            if str(stopped):  # a run that can be resumed says how
                print(f"\ncaseback: {stopped}", file=sys.stderr)
            raise
        except typer.BadParameter as wrong:
            wrong.message = safe(wrong.message.removeprefix("Value error, "))  # the words of a library that checks it
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    cls=_Lazy, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True
)


def _version(wanted: bool) -> bool:
    if wanted:
        from caseback import __version__

        typer.echo(f"caseback {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _caseback(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Look into a language model: find a mechanism, describe it, prove it.

    A first look: caseback circuit ioi
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    try:
        typer.main.get_command(app).main(arguments, prog_name="caseback")
    except CasebackError as error:
        _leave(str(error))
    except BrokenPipeError:
        _close_stdout()
        sys.exit(1)
    except OSError as error:
        _leave(_sentence(error))
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        _leave(TOO_MUCH)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader went away (`| head`), which is its right
            _close_stdout()


def _leave(sentence: str) -> None:
    said = "\n".join(safe(line) for line in sentence.split("\n"))  # it may name files, whose names are anyone's
    print(f"caseback: {said}", file=sys.stderr)
    sys.exit(2)


def _sentence(error: OSError) -> str:
    """What the operating system refused, where, and what to do about it."""
    where = f" {error.filename}" if error.filename else ""
    match error.errno:
        case errno.ENOENT:
            return f"there is no file or folder{where}"
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk is full{', writing' + where if where else ''}: make room and run it again, what was finished is kept"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"not permitted to use{where or ' a file'} ({error.strerror}): choose another, or change its permissions"
        case _:
            return f"{error.strerror or error}{':' + where if where else ''}"


def _close_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's own last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
