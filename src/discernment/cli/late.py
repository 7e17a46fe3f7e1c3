"""Verbs whose modules are imported when they are given: the help of all verbs needs one line of each."""

from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand


class LateVerb(TyperCommand):
    """A verb known by its name and its line of help, which becomes the whole one when it is given."""

    module: ClassVar[str]

    def whole(self) -> TyperCommand:
        """The verb with its options, its help and its function, which bears the name of its module."""
        from discernment.cli.examples import epilog
        from discernment.cli.options import Quiet

        alone = typer.Typer(add_completion=False)
        path = self.module.removeprefix("discernment.cli.")
        alone.command(self.name, epilog=epilog(path))(
            getattr(import_module(self.module), self.module.rpartition(".")[2])
        )
        command = typer.main.get_command(alone)
        assert isinstance(command, TyperCommand)
        command.params.append(_parameter(Quiet))
        return command

    def make_context(self, *args: Any, **named: Any) -> Any:
        """Read the arguments as the whole verb does; what is then called is that one."""
        return self.whole().make_context(*args, **named)


def add_verb(group: typer.Typer, module: str, line: str, name: str | None = None) -> None:
    """Add a verb to a group without importing it.

    Args:
        group: Where it belongs.
        module: Its module below `discernment.cli`, whose function of the same name it is.
        line: The first line of its help, as the function's docstring has it.
        name: The verb's name where it is not the function's.
    """
    home = f"discernment.cli.{module}"
    late = type("Late", (LateVerb,), {"module": home})
    group.command(name or module.rpartition(".")[2], cls=late, help=line)(_not_read_yet)


def _parameter(option: Any) -> Any:
    """An option that every verb has, and no verb's function hears of."""
    alone = typer.Typer(add_completion=False)

    def takes(quiet: Any = False) -> None:
        pass

    takes.__annotations__["quiet"] = option
    alone.command()(takes)
    return typer.main.get_command(alone).params[0]


def _not_read_yet() -> None:
    """Stand where a verb's function will."""
