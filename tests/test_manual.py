"""The manual is tested: man/, --help, the settings, the exit codes and bin/ name the same things."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from fusemirror import errors, settings
from fusemirror.cli import mount_helper, umount_helper
from fusemirror.cli.main import COMMANDS, program
from fusemirror.cli.mount_options import FUSE_OPTIONS, IGNORED_OPTIONS, REFUSED_OPTIONS
from fusemirror.mirror.states import MirrorWord

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = sorted((CHECKOUT / "man").iterdir())


def text_of(page: str) -> str:
    """A page's source without the marks of roff that stand inside words and lines."""
    text = (CHECKOUT / "man" / page).read_text(encoding="utf-8").replace("\\-", "-").replace("\\ ", " ")
    text = re.sub(r"\\f[A-Z]", "", text)
    return re.sub(r"^\.(B|I|BR|BI|RB|RI|IR|TP|nf|fi|RS|RE)\b ?", "", text, flags=re.MULTILINE)


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next heading of its kind."""
    found = re.search(rf"^\.S[HS] {re.escape(title)}[^\n]*\n(.*?)(?=^\.S[HS] |\Z)", text, re.M | re.S)
    assert found is not None, f"no section {title}"
    return found[1]


def command_named(name: str) -> click.Command:
    assert isinstance(program, click.Group)
    command = program.get_command(click.Context(program), name)
    assert command is not None
    return command


def options_of(command: click.Command) -> set[str]:
    return {
        flag for parameter in command.params if isinstance(parameter, click.Option) for flag in parameter.opts
    }


def options_in(text: str) -> set[str]:
    """Every option that a text names: `-f`, `--for`."""
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def test_the_manual_has_the_commands_of_the_program() -> None:
    assert re.findall(r"^\.SS fusemirror (\S+)", text_of("fusemirror.8"), re.M) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_has_the_options_of_a_command(name: str) -> None:
    heading = re.search(rf"^\.SS fusemirror {name}\b.*", text_of("fusemirror.8"), re.M)
    assert heading is not None
    body = section(text_of("fusemirror.8"), f"fusemirror {name}")
    documented = options_in(heading[0] + "\n" + body)
    assert documented == options_of(command_named(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_has_the_arguments_of_a_command(name: str) -> None:
    heading = re.search(rf"^\.SS fusemirror {name}\b(.*)", text_of("fusemirror.8"), re.M)
    assert heading is not None
    for parameter in command_named(name).params:
        if isinstance(parameter, click.Argument):
            shown = parameter.make_metavar(click.Context(command_named(name)))
            assert shown.strip("[]{}") in heading[1]


def test_the_manual_has_the_options_of_the_program() -> None:
    documented = options_in(section(text_of("fusemirror.8"), "OPTIONS"))
    assert documented == options_of(program) | {"-h", "--help"}


def test_every_option_says_what_it_is_for() -> None:
    for command in (program, *map(command_named, COMMANDS)):
        for parameter in command.params:
            modes = parameter.name in ("access", "acknowledge", "communication")
            assert modes or not isinstance(parameter, click.Option) or parameter.help


def test_the_manual_has_every_exit_code_of_the_errors() -> None:
    def codes(base: type[errors.FusemirrorError]) -> set[int]:
        return {base.exit_code}.union(*map(codes, base.__subclasses__()))

    documented = set(map(int, re.findall(r"^(\d+)$", section(text_of("fusemirror.8"), "EXIT STATUS"), re.M)))
    assert documented == {*range(11), 12}
    assert codes(errors.FusemirrorError) <= documented


def test_the_manual_says_what_each_word_of_a_state_means_and_what_to_do() -> None:
    told = re.findall(r"^(\w+)\|T\{\n(.+)", section(text_of("fusemirror.8"), "fusemirror status"), re.M)
    assert {word for word, _ in told} == {word.value for word in MirrorWord}
    assert all(re.search(rf"\b{word} ?:", text_of("fusemirror.7")) for word, _ in told)


def test_the_manual_has_every_key_of_the_settings() -> None:
    keys = re.findall(r"^\.TP\n\.B (\w+)$", (CHECKOUT / "man" / "fusemirror.toml.5").read_text(), re.M)
    assert keys == list(settings.descriptions())


@pytest.mark.parametrize(
    "key", ["io_timeout", "peer_timeout", "path_timeout", "stale_reads", "resync_rate", "access", "log_level"]
)
def test_the_manual_has_the_defaults_of_the_settings(key: str) -> None:
    text = text_of("fusemirror.toml.5")
    entry = text[re.search(rf"^{key}$", text, re.M).start() :]  # type: ignore[union-attr]
    documented = re.search(r"^Default:\s+(\S+?)\.?$|^Default:\n(\S+) \.$", entry, re.M)
    assert documented is not None
    chosen = settings.make(name="x", volume="/x", listen="a:1", peer="a:1")
    default = getattr(chosen, key)
    shown = f"{default:g}" if isinstance(default, float) else str(default).lower()
    assert (documented[1] or documented[2]) == shown


@pytest.mark.parametrize(
    ("page", "usage"),
    [("mount.fusemirror.8", mount_helper.USAGE), ("umount.fusemirror.8", umount_helper.USAGE)],
)
def test_the_pages_of_the_helpers_have_their_flags(page: str, usage: str) -> None:
    flags = set(re.findall(r"-([a-zA-Z]+)", usage))
    letters = {letter for group in flags for letter in group}
    documented = set(re.findall(r"(?<!\w)-([a-zA-Z])\b", section(text_of(page), "FLAGS")))
    assert documented == letters


def test_every_mount_option_is_in_its_page() -> None:
    documented = set(re.findall(r"[\w-]+", section(text_of("mount.fusemirror.8"), "MOUNT OPTIONS")))
    assert {*FUSE_OPTIONS, *IGNORED_OPTIONS, *REFUSED_OPTIONS} <= documented


def test_the_table_of_the_source_names_modules_that_are_there() -> None:
    rows = re.findall(r"^([^|\n]+)\|T{\n(.+):$", section(text_of("fusemirror.7"), "THE SOURCE"), re.M)
    elements = {element: names.split(", ") for element, names in rows}
    named = [name for names in elements.values() for name in names]
    assert all((CHECKOUT / "fusemirror" / name).is_file() for name in named), named
    told = " ".join(elements)
    for element in (101, 102, 202, 203, 301, 302, 601, 602, 603, *(f"JOB{number}" for number in range(1, 6))):
        assert re.search(rf"\b{element}\b", told), element
    figures: set[int] = set()
    for first, _, last in re.findall(r"(?<=[ ,(])(\d+)(-(\d+))?(?=[,;) ])", told + " "):
        figures.update(range(int(first), int(last or first) + 1))
    assert {*range(3, 10), *range(11, 18), 19, 20} <= figures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.skipif(shutil.which("man") is None, reason="no man")
def test_a_page_is_good_roff(page: Path) -> None:
    command = ["man", "--warnings=w", "-E", "UTF-8", "-Tutf8", "-Z", "-l", str(page)]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "110"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_refer_to_pages_that_are_there(page: Path) -> None:
    referred = re.findall(r"^\.BR ((?:u?mount\.)?fusemirror\S*) \((\d)\)", page.read_text(), re.M)
    assert {f"{name}.{number}" for name, number in referred} <= {page.name for page in PAGES}


def test_every_script_can_be_run() -> None:
    for script in (CHECKOUT / "bin").iterdir():
        assert script.stat().st_mode & 0o111, script.name
        assert script.read_bytes().startswith(b"#!"), script.name
