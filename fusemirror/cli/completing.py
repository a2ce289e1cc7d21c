"""What the shells complete beyond commands and options: names, settings, mountpoints and hosts.

Each function is a `shell_complete` of click. Nothing here asks a mount process, and what cannot be read
completes nothing: a person presses the tab key to be helped, not to be told of errors.
"""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import get_type_hints

import click
from click.shell_completion import CompletionItem

from fusemirror import settings
from fusemirror.cli.mounts import our_mounts
from fusemirror.errors import FusemirrorError
from fusemirror.settings import CONFIG_DIR, Settings


def _beginning(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _config_dir(context: click.Context) -> Path:
    return Path(context.find_root().params.get("config_dir") or CONFIG_DIR)


def _names(context: click.Context) -> list[str]:
    try:
        return settings.names_in(_config_dir(context))
    except OSError:
        return []


def complete_name(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The filesystems that have a config file on this host."""
    return _beginning(incomplete, _names(context))


def complete_target(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """What can be unmounted: names and mountpoints."""
    places = {place for mount in our_mounts() for place in (mount.name, mount.directory)}
    return _beginning(incomplete, sorted(places))


def complete_assignment(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Settings as `KEY=`, and behind that the values that there are.

    bash makes words of their own of KEY, `=` and VALUE, and click hides an `=` that is the last of them.
    """
    before = [word for word in context.params.get("assignments") or () if word != "="]
    if before and before[-1] in settings.descriptions():
        return _beginning(incomplete, _values(before[-1]))
    key, separator, value = incomplete.partition("=")
    if separator:
        return [CompletionItem(f"{key}={item.value}") for item in _beginning(value, _values(key))]
    return _beginning(incomplete, (f"{key}=" for key in settings.descriptions() if key != "name"))


def _values(key: str) -> list[str]:
    kind = get_type_hints(Settings).get(key)
    if kind is bool:
        return ["true", "false"]
    return list(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else []


def complete_host(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The hosts of the filesystem that the command names, or of all of this host."""
    from fusemirror.volume.identity import Identity

    name, hosts = context.params.get("name"), set[str]()
    for each in [name] if name else _names(context):
        try:
            chosen = settings.load(settings.config_path(_config_dir(context), each))
            identity = Identity.load(Path(chosen.volume))
        except (FusemirrorError, OSError):
            continue
        hosts |= {identity.host_name, *(peer.name for peer in identity.peers)}
    return _beginning(incomplete, sorted(hosts))
