"""The command line. Each command has a file of its own that parses, calls the library and renders."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from ctrlgen.cli import (
    augment,
    controls,
    demo,
    edit,
    evaluate,
    generate,
    import_,
    infill,
    recipe,
    similar,
    train,
    train_classifier,
    train_lm,
    validate,
    write,
)
from ctrlgen.cli.common import Command
from ctrlgen.cli.telling import start_log, tell_log
from ctrlgen.errors import CtrlgenError, UsageError

OK, FAILURE, USAGE, UNSUCCESSFUL, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="ctrlgen",
    help="Write text under control: a diffusion language model steered by attribute classifiers.\n\n"
    'Begin with: ctrlgen generate -c "food: Italian" -n 3',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {  # by the headings of the help
    "Write texts": {
        "generate": generate.generate,
        "infill": infill.infill,
        "edit": edit.edit,
        "write": write.write,
        "demo": demo.demo,
    },
    "See what there is, and check": {
        "controls": controls.controls,
        "validate": validate.validate,
        "eval": evaluate.evaluate,
        "similar": similar.similar,
    },
    "Make a model of your own": {
        "train": train.train,
        "train-classifier": train_classifier.train_classifier,
        "train-lm": train_lm.train_lm,
        "augment": augment.augment,
        "recipe": recipe.recipe,
        "import": import_.import_,
    },
}
for heading, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, cls=Command, rich_help_panel=heading)(command)


def show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"ctrlgen {version('ctrlgen')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of ctrlgen itself."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of the documented codes."""
    configure_libraries()
    start_log()
    end_as_interrupted()
    if sys.stdout is None:  # closed by the shell
        sys.exit(fail("standard output is closed", FAILURE))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show is no reason to stop
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="ctrlgen", standalone_mode=False)
        if code == INTERRUPTED:  # typer answers Ctrl-C without a word
            fail("interrupted", INTERRUPTED)
        else:
            tell_log()
    except UsageError as error:
        code = fail(str(error), USAGE)
    except CtrlgenError as error:
        code = fail(str(error), FAILURE)
    except TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        code = fail(message + missing_option(message), USAGE)
    except (Abort, KeyboardInterrupt):
        code = fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILURE
    except UnicodeEncodeError as error:  # bytes that are no UTF-8, from the command line
        code = fail(f"{error.object!r}: not Unicode text", USAGE)
    except OSError as error:
        code = fail(f"{error.filename or 'output'}: {error.strerror or error}", FAILURE)
    sys.exit(code or OK)


def missing_option(message: str) -> str:
    """What to write where a control was given without its option."""
    found = re.search(r"unexpected extra argument\S* \((.*:.*)\)", message)
    return f'. Controls are given with -c: -c "{found[1]}"' if found else ""


def end_as_interrupted() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, where they are not ignored (as under nohup)."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if line:
        print(f"ctrlgen: {line}", file=sys.stderr)
    return code


def configure_libraries() -> None:
    """Settings that must stand in the environment before torch is imported."""
    # Two busy threads on few cores must not spin while they wait for each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Sentences come in many lengths, each with its own compiled kernels; the default cache forgets them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
