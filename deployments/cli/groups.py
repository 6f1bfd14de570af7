"""How commands are called: help that reads well, and errors that end a command instead of showing a traceback."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode

DEBUG_VARIABLE = "POINTSMAN_DEBUG"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

FLAG = " "
"""The metavar of an option without a value; left to itself, Typer's help would call it `<bool>`."""


class Command(TyperCommand):
    """One command."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - the signature of the base class, whose types are private
        """The option `--help`."""
        return _as_flag(super().get_help_option(ctx))


class CommandGroup(TyperGroup):
    """Commands below a command."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - the signature of the base class, whose types are private
        """The option `--help`."""
        return _as_flag(super().get_help_option(ctx))


class Commands(CommandGroup):
    """All commands: turns exceptions into messages and exit statuses."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the signature of the base class, whose types are private
        """Run the command. With POINTSMAN_DEBUG=1 exceptions come through with their traceback."""
        try:
            status = super().invoke(ctx)
        except CliError as error:
            if debugging():
                raise
            output.print_error(error)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            output.remark("Stopped.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output has seen enough; what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.OK) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            # Typer's own exceptions are about wrong arguments; it shows them well.
            if debugging() or type(error).__module__.startswith("typer."):
                raise
            output.print_error(_unforeseen(error))
            raise typer.Exit(ExitCode.FAILED) from None
        if isinstance(status, ExitCode) and status is not ExitCode.OK:
            raise typer.Exit(status)
        return status


def debugging() -> bool:
    """Whether the user wants tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _unforeseen(error: Exception) -> CliError:
    """What no command foresaw. A disk or its permissions can fail at any file, and the user can mend that."""
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename is not None else ""
    if isinstance(error, OSError) and error.errno in _FULL:
        return CliError(f"the disk is full{where}", "Free some space, and try again.")
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return CliError(f"this user may not do that{where}", "Mend the permissions, or name another place.")
    remedy = f"This should not happen. {DEBUG_VARIABLE}=1 shows where it comes from."
    return CliError(f"{type(error).__name__}: {error}", remedy)


def _as_flag(option: Any) -> Any:  # noqa: ANN401 - an option of Typer's, whose type is private
    if option is not None:
        option.metavar = FLAG
    return option
