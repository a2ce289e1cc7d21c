"""`fusemirror completion`: the script that teaches a shell our commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; `eval "$(fusemirror completion bash)"` loads it."""
    script = get_completion_class(shell)
    assert script is not None, "click knows each of the choices"
    root = context.find_root().command
    click.echo(script(root, {}, "fusemirror", "_FUSEMIRROR_COMPLETE").source())
