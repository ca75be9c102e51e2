"""Help in groups, with nothing cut off."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class GroupedCommand(TyperCommand):
    """A command whose options are shown in the groups of their records."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then each group of options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            shown = param.get_help_record(ctx)
            if shown is not None:
                unnamed = "Arguments" if param.param_type_name == "argument" else "Help"
                groups.setdefault(getattr(param, "rich_help_panel", None) or unnamed, []).append(shown)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class WholeSummaries(TyperGroup):
    """A group of commands whose summaries are shown whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write every command with its summary."""
        rows = [(name, self.commands[name].help or "") for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
