# SPDX-License-Identifier: Apache-2.0
"""How all commands look: their help, what is said of wrong use, and what a shell can complete.

Typer has brought Click along in one form or another: nothing here imports it by name.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

from lipsync_fast.console import EXIT_ERROR, EXIT_INTERRUPT, one_line, say

SETTINGS = {"help_option_names": ["-h", "--help"]}
BACKENDS = ("auto", "cpu", "cuda", "cuda:N")
_NARROW = 60
"""Columns below which what an option means stands under it, not beside it."""
_PLENTY = 10_000


def choice(*names: Any, among: Sequence[str], help: str, **named: Any) -> Any:
    """An option whose values are a few words: shown in help, and completed by the shell."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in among if word.startswith(incomplete) and not word.endswith(":N")]

    shown = f"[{'|'.join(among)}]"
    return typer.Option(*names, metavar=shown, autocompletion=complete, help=help, **named)


def leave_only(app: typer.Typer, args: Sequence[str]) -> None:
    """Leave an app the command alone that ``args`` begins with; all of them where it is none.

    Before anything runs, Typer reads the options of every command that there is: a third of the
    time that a command takes to start.
    """
    name = args[0] if args else ""
    commands = [each for each in app.registered_commands if _name_of(each) == name]
    groups = [each for each in app.registered_groups if each.name == name]
    if not (commands or groups):
        return
    app.registered_commands, app.registered_groups = commands, groups
    for group in groups:
        if group.typer_instance is not None:
            leave_only(group.typer_instance, args[1:])


def _name_of(command: CommandInfo) -> str:
    return command.name or getattr(command.callback, "__name__", "").replace("_", "-")


def complete_avatar(incomplete: str) -> list[str]:
    """Names of avatars that are found here."""
    from lipsync_fast.avatars.library import AvatarLibrary

    names = {name for name, _ in AvatarLibrary().candidates() if name.isprintable()}
    return sorted(name for name in names if name.startswith(incomplete))


class Command(TyperCommand):
    """A command whose help fits into a narrow terminal."""

    def get_help(self, ctx: Any) -> str:
        """The help, as wide as the terminal."""
        return _help_of(self, ctx)


class Group(TyperGroup):
    """Commands: listed with the whole of their first sentence, and guessed where misspelt."""

    def get_help(self, ctx: Any) -> str:
        """The help, as wide as the terminal."""
        return _help_of(self, ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands. (Click cuts their sentences off at the line's end.)"""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, c.get_short_help_str(_PLENTY)) for name, c in commands if c and not c.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a name; where there is none, the error names one that is near."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if not hasattr(error, "message"):
                raise
            near = difflib.get_close_matches(args[0], list(self.commands), 1)
            near = near or list(self._inside(args[0])) or [""]
            hint = f"; did you mean '{near[0]}'?" if near[0] else ""
            error.message = f"there is no command {args[0][:40]!r}{hint}"
            raise

    def _inside(self, name: str) -> Iterator[str]:
        """The same name in a group of commands: prepare is ``avatar prepare``."""
        for group_name, group in self.commands.items():
            if name in getattr(group, "commands", {}):
                yield f"{group_name} {name}"

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit: wrong use is one line on standard error, as any other error."""
        columns = shutil.get_terminal_size().columns
        if columns < _NARROW:  # Click takes 50 for the least that there is
            extra.setdefault("terminal_width", max(20, columns - 1))
        run = partial(
            super().main, args, prog_name, complete_var, False, windows_expand_args, **extra
        )
        if not standalone_mode:
            return run()
        try:
            status = run()
        except typer.Abort:  # Ctrl-C or Ctrl-D at a question
            say("interrupted")
            sys.exit(EXIT_INTERRUPT)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            sys.exit(_said(error))
        sys.exit(status if isinstance(status, int) else 0)


def _said(error: Any) -> int:
    """Say what was wrong with the command line; gives the exit status."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return EXIT_ERROR
    words = re.sub(r"\.? Did you mean", "; did you mean", error.format_message().rstrip(". \n"))
    where = getattr(getattr(error, "ctx", None), "command_path", "")
    hint = f" (see {where} -h)" if where else ""
    say(f"error: {one_line(words[:1].lower() + words[1:])}{hint}")
    return EXIT_ERROR


def _help_of(command: Any, ctx: Any) -> str:
    formatter = ctx.make_formatter()
    if formatter.width < _NARROW:
        beside: Callable[..., None] = partial(_one_below_the_other, formatter)
        vars(formatter)["write_dl"] = beside
    command.format_help(ctx, formatter)
    return str(formatter.getvalue()).rstrip("\n")


def _one_below_the_other(formatter: Any, rows: Sequence[tuple[str, str]], *_: Any) -> None:
    """What ``write_dl`` writes, each meaning under its word."""
    for text, margin in ((cell, 4 * i) for row in rows for i, cell in enumerate(row)):
        indent = " " * (formatter.current_indent + margin)
        lines = textwrap.wrap(
            text,
            formatter.width,
            initial_indent=indent,
            subsequent_indent=indent + "  " * (not margin),
            break_on_hyphens=False,
        )
        formatter.write("\n".join([*lines, ""]))
