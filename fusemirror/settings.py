"""Settings of one mirrored filesystem on one host: its config file, parsed once, validated, frozen.

`Settings` is the reference for the keys of `NAME.toml`: type, range, default and meaning of each
stand here once, and the file written by `create`, the errors and fusemirror.toml(5) follow them.
"""

import os
import re
import stat
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

from fusemirror.errors import BadConfig, ConfigMissing, UsageError
from fusemirror.limits import (
    ADDRESSES_MAX,
    COMMUNICATION_BYTES_DEFAULT,
    COMMUNICATION_MEMORY_DEFAULT,
    COMMUNICATION_MEMORY_MIN,
    CONFIG_BYTES_MAX,
    FILE_BYTES_MAX,
    GIB,
    HOST_NAME_BYTES_MAX,
    KIB,
    MIB,
    PATH_TIMEOUT_S,
)

CONFIG_DIR = Path("/etc/fusemirror")
RUNTIME_DIR = Path("/run/fusemirror")


class Access(StrEnum):
    """Which way the backup's requests go."""

    ROUTED = "routed"
    EXCLUSIVE = "exclusive"


class Acknowledge(StrEnum):
    """When success is reported."""

    SYNC = "sync"
    ASYNC = "async"


class Communication(StrEnum):
    """Where the backup keeps its requests until the primary has them."""

    LMDB = "lmdb"
    SUBVOLUME = "subvolume"
    MEMORY = "memory"


class Fence(StrEnum):
    """What the primary does with changes that it cannot mirror."""

    NEVER = "never"
    DATA = "data"


class OnDegraded(StrEnum):
    """What a request gets that needs the other host, while that is known to be away."""

    WAIT = "wait"
    REPORT = "report"


class LogLevel(StrEnum):
    """The least severe messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Address(NamedTuple):
    """A host name or IP address, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT`, an IPv6 address in brackets; ValueError says what is wrong with it."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError(f"`{text}` is not HOST:PORT (an IPv6 address in brackets, a port of 1 to 65535)")
    return Address(match[1] or match[2], int(match[3]))


def parse_endpoints(text: str) -> tuple[str, ...]:
    """Endpoints `http://HOST:PORT`, with commas between, none for no text; ValueError says what is wrong."""
    endpoints = tuple(filter(None, (part.strip().rstrip("/") for part in text.split(","))))
    for endpoint in endpoints:
        scheme, separator, address = endpoint.partition("://")
        if scheme != "http" or not separator:
            raise ValueError(f"`{endpoint}` is not http://HOST:PORT")
        parse_address(address)
    return endpoints


UNITS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": KIB * GIB}


def parse_bytes(text: str) -> int:
    """A size such as `512 MiB`, in bytes; ValueError where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"`{text}` is not a size such as 1048576, 512 MiB or 1 GiB")
    count = float(match[1]) * UNITS[match[2].lower()]
    if count > FILE_BYTES_MAX:
        raise ValueError("a size of more than 8 EiB is none of a disk")
    return int(count)


def format_bytes(count: float) -> str:
    """The size for people: three digits and an IEC unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < KIB:
            # From 999.5 on three digits would be written as 1e+03.
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
        count /= KIB
    return f"{count:.1f} TiB"


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
HOST_NAME_PATTERN = r"^[A-Za-z0-9\[][A-Za-z0-9_.:%\[\]-]*\Z"
Seconds = float
OneOrMore = str | tuple[str, ...]
"""One text, as it stood before there could be several, or a list."""


def several(value: OneOrMore) -> tuple[str, ...]:
    """All of them."""
    return (value,) if isinstance(value, str) else value


def joined(value: OneOrMore) -> str:
    """All of them, for people."""
    return ", ".join(several(value))


def parse_addresses(value: OneOrMore) -> tuple[Address, ...]:
    """Each `HOST:PORT`, in their order; ValueError says what is wrong with them."""
    addresses = tuple(map(parse_address, several(value)))
    if not 0 < len(addresses) <= ADDRESSES_MAX:
        raise ValueError(f"must be one address or a list of 1 to {ADDRESSES_MAX}")
    if len(set(addresses)) < len(addresses):
        raise ValueError("names an address twice")
    return addresses


def is_host_name(text: str) -> bool:
    """Whether a host may be called so: a name or an address, that also names a directory of its files."""
    return len(text) <= HOST_NAME_BYTES_MAX and re.fullmatch(HOST_NAME_PATTERN, text) is not None


def check_host_name(text: str) -> str:
    """The name of a host as it is; UsageError for what cannot be one."""
    if not is_host_name(text):
        raise UsageError(
            f"`{text}` is not a name for a host: begin with a letter or digit, then also `_.:%[]-`, "
            f"{HOST_NAME_BYTES_MAX} at most; see --host-name and --peer-name"
        )
    return text


def nearest_host_name(text: str) -> str:
    """A name for a host that has a bad one: each character that it may not have becomes `-`."""
    name = re.sub(r"[^A-Za-z0-9_.:%\[\]-]", "-", text).lstrip("_.:%]-")[:HOST_NAME_BYTES_MAX]
    return name or "host"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person decides about a mirrored filesystem on this host."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="Name of the mirrored filesystem.")]
    volume: Annotated[
        str, Meta(pattern=r"^/[^\0]*\Z", description="Directory of this host's copy, an absolute path.")
    ]
    listen: Annotated[
        OneOrMore, Meta(description="HOST:PORT where this host waits for the other, or a list of them.")
    ]
    peer: Annotated[
        OneOrMore, Meta(description="HOST:PORT where the other host waits for this one, or a list of them.")
    ]
    mountpoint: Annotated[
        str,
        Meta(
            pattern=r"^(/[^\0]*)?\Z",
            description="Directory to mount on where the command names none, as in the systemd unit.",
        ),
    ] = ""
    access: Annotated[
        Access,
        Meta(
            description="routed: the backup's requests go through the primary. exclusive: see fusemirror(7)."
        ),
    ] = Access.ROUTED
    acknowledge: Annotated[
        Acknowledge, Meta(description="When success is told: sync, in both volumes; async, safe here.")
    ] = Acknowledge.SYNC
    communication: Annotated[
        Communication, Meta(description="Where requests are staged: lmdb, the subvolume itself, or memory.")
    ] = Communication.LMDB
    fence: Annotated[
        Fence,
        Meta(description="Without the backup the primary goes on alone (never), or refuses changes (data)."),
    ] = Fence.NEVER
    io_timeout: Annotated[
        Seconds,
        Meta(ge=0.2, le=3600, description="Seconds that the backup waits for the primary before EIO."),
    ] = 30.0
    on_degraded: Annotated[
        OnDegraded,
        Meta(description="While the other host is away: wait io_timeout for it, or report EIO at once."),
    ] = OnDegraded.WAIT
    peer_timeout: Annotated[
        Seconds, Meta(ge=0.2, le=300, description="Seconds of silence after which the peer counts as away.")
    ] = 5.0
    path_timeout: Annotated[
        Seconds,
        Meta(ge=0.1, le=60, description="Seconds without progress after which a path takes another address."),
    ] = PATH_TIMEOUT_S
    stale_reads: Annotated[
        bool, Meta(description="The backup may read its own, possibly old, copy while the primary is away.")
    ] = False
    communication_directory: Annotated[
        str,
        Meta(
            pattern=r"^(/[^\0]*)?\Z",
            description="Directory for requests of the kind lmdb, as on another disk; else in the volume's.",
        ),
    ] = ""
    communication_capacity: Annotated[
        int,
        Meta(ge=16 * MIB, le=1024 * GIB, description="The most that the communication volume may hold."),
    ] = COMMUNICATION_BYTES_DEFAULT
    communication_memory: Annotated[
        int,
        Meta(
            ge=COMMUNICATION_MEMORY_MIN,
            le=1024 * GIB,
            description="The most memory that staged requests may take; the rest is read back from the disk.",
        ),
    ] = COMMUNICATION_MEMORY_DEFAULT
    resync_rate: Annotated[
        int, Meta(ge=0, le=1024 * GIB, description="Bytes per second that a resync may copy; 0 is no limit.")
    ] = 0
    verify_rate: Annotated[
        int, Meta(ge=0, le=1024 * GIB, description="Bytes per second that verify may read; 0 is no limit.")
    ] = 0
    witness: Annotated[
        str, Meta(description="etcd that decides who goes on alone: http://HOST:PORT, several with commas.")
    ] = ""
    tls: Annotated[
        bool, Meta(description="Encrypt, and talk to nobody but the other host. false: trust the network.")
    ] = True
    host_name: Annotated[
        str, Meta(description="Name of this host, where it is to have another than it was made with.")
    ] = ""
    log_level: Annotated[
        LogLevel, Meta(description="The least severe messages to log: debug, info, warning or error.")
    ] = LogLevel.INFO

    def __post_init__(self) -> None:
        for key in ("listen", "peer"):
            _attributed(key, parse_addresses, getattr(self, key))
        _attributed("witness", parse_endpoints, self.witness)
        if self.host_name and not is_host_name(self.host_name):
            raise _Refused("host_name", f"`{self.host_name}` is not a name for a host; see fusemirror(8)")
        if self.witness and self.fence is Fence.DATA:
            raise _Refused("witness", "is for a host that goes on alone, which fence = `data` never lets it")
        if self.io_timeout < self.peer_timeout:
            raise _Refused("io_timeout", f"must be at least peer_timeout ({self.peer_timeout:g} s)")

    @property
    def listen_addresses(self) -> tuple[Address, ...]:
        return parse_addresses(self.listen)

    @property
    def witness_endpoints(self) -> tuple[str, ...]:
        return parse_endpoints(self.witness)

    @property
    def peer_addresses(self) -> tuple[Address, ...]:
        return parse_addresses(self.peer)


BYTE_KEYS = ("communication_capacity", "communication_memory", "resync_rate", "verify_rate")
"""Keys that may be written with a unit."""


def descriptions() -> dict[str, str]:
    """What each key means, in the order of the file."""
    hints = get_type_hints(Settings, include_extras=True)
    return {key: hints[key].__metadata__[0].description for key in Settings.__struct_fields__}


class _Refused(ValueError):
    """The value of one key cannot be used."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key = key


def _attributed(key: str, parse: Any, value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise _Refused(key, str(error)) from error


def _convert(values: dict[str, Any]) -> Settings:
    """Settings from the values of a file; `_Refused` names the key at fault."""
    for key in BYTE_KEYS:
        if isinstance(values.get(key), str):
            values[key] = _attributed(key, parse_bytes, values[key])
    try:
        return msgspec.convert(values, Settings)
    except UnicodeEncodeError as error:
        raise _Refused(ascii(error.object), "is not Unicode text") from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, _Refused):
            raise error.__cause__ from None
        # msgspec says "Expected `bool`, got `int` - at `$.stale_reads`", or names an unknown field.
        what, _, path = str(error).partition(" - at `$.")
        field = re.search(r"field `(.*)`", what)
        key = path.rstrip("`").partition("[")[0] or (field[1] if field else "")
        raise _Refused(key, _in_words(key, values.get(key), what)) from None


WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
WORDS |= {"array": "a list", "object": "a table", "null": "nothing"}
"""What msgspec calls the types of values, for people."""

FORMS = {
    "name": "must be letters, digits, `.`, `_` and `-`, with a letter or digit first, 64 at most",
    "volume": "must be an absolute path",
    "mountpoint": "must be an absolute path, or empty",
    "communication_directory": "must be an absolute path, or empty",
}
"""What a text must look like, for the keys that have a pattern."""


def _in_words(key: str, value: Any, what: str) -> str:
    """What msgspec finds wrong with the value of a key, for people; of an enumeration, what may be there."""
    if what.startswith("Object contains unknown"):
        return "unknown key"
    if what.startswith("Object missing"):
        return "must be there, and is not"
    kind = get_type_hints(Settings)[key]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"`{value}` is not one of {', '.join(kind)}"
    if limit := re.fullmatch(r"Expected `\w+` (>=|<=) (\S+)", what):
        shown = format_bytes(int(limit[2])) if key in BYTE_KEYS else limit[2]
        return f"must be at {'least' if limit[1] == '>=' else 'most'} {shown}"
    if types := re.fullmatch(r"Expected `([\w |]+)`, got `(\w+)`", what):
        expected, found = (" or ".join(WORDS.get(n, n) for n in each.split(" | ")) for each in types.groups())
        return f"is {found} where {expected} is expected"
    return FORMS.get(key, what[0].lower() + what[1:])


def make(**values: Any) -> Settings:
    """Settings from values as a file would hold them; UsageError where one cannot be used."""
    try:
        return _convert(values)
    except _Refused as error:
        raise UsageError(f"{error.key}: {error}") from None


FIXED_WHILE_MOUNTED = {
    "name": "it names the files and the socket of the mount",
    "volume": "the volume is open",
    "communication_directory": "the communication volume is open",
    "listen": "the peer knows these addresses",
    "peer_timeout": "leases were given by it",
    "path_timeout": "the connections were made by it",
    "witness": "both hosts must change it at the same time",
    "tls": "both hosts must change it at the same time",
    "host_name": "the other host hears of it when they meet",
}
"""Keys that a running mount does not change, and why."""


def changed(settings: Settings, values: dict[str, Any]) -> Settings:
    """The settings with other values, as a file would hold them; UsageError where one cannot be used."""
    if values.get("name", settings.name) != settings.name:
        raise UsageError("name: a mirrored filesystem keeps its name")
    return make(**{**msgspec.structs.asdict(settings), **values})


def changed_while_mounted(settings: Settings, values: dict[str, Any]) -> Settings:
    """The same for a running mount; UsageError also for what only the next one can take."""
    after = changed(settings, values)
    for key, reason in FIXED_WHILE_MOUNTED.items():
        if getattr(after, key) != getattr(settings, key):
            raise UsageError(f"{key} cannot change while mounted: {reason}; unmount on this host first")
    return after


def taken_while_mounted(settings: Settings, wanted: Settings) -> tuple[dict[str, Any], list[str]]:
    """What differs that a running mount can take, for `changed_while_mounted`; the keys that it cannot."""
    differing = [key for key in wanted.__struct_fields__ if getattr(wanted, key) != getattr(settings, key)]
    fixed = [key for key in differing if key in FIXED_WHILE_MOUNTED]
    return {key: getattr(wanted, key) for key in differing if key not in fixed}, fixed


def config_path(config_dir: Path, name: str) -> Path:
    """The config file of a mirrored filesystem; UsageError for what cannot be a name."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"`{name}` is not a name: use letters, digits, `.`, `_` and `-`, 64 at most")
    return config_dir / f"{name}.toml"


def names_in(config_dir: Path) -> list[str]:
    """What has a config file there; nothing where there is no such directory. OSError."""
    try:
        entries = os.listdir(config_dir)
    except FileNotFoundError:
        return []
    return sorted(entry.removesuffix(".toml") for entry in entries if entry.endswith(".toml"))


def load(path: Path) -> Settings:
    """The settings in a file; ConfigMissing, or BadConfig with the line at fault."""
    try:
        text = _read(path).decode()
    except FileNotFoundError:
        raise ConfigMissing(path.stem, path) from None
    except UnicodeDecodeError as error:
        raise BadConfig(path, 1, f"not UTF-8 text: {error.reason}") from None
    try:
        settings = _convert(tomllib.loads(text))
        if settings.name != path.stem:
            raise _Refused("name", f"`{settings.name}` does not agree with the name of the file")
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        number = int(line[1]) if line else text.count("\n") + 1
        raise BadConfig(path, number, re.sub(r" \(at .*\)", "", str(error))) from None
    except _Refused as error:
        raise BadConfig(path, _line_of(error.key, text), f"{error.key}: {error}") from None
    except RecursionError:
        raise BadConfig(path, 1, "it is nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python takes
        raise BadConfig(path, 1, str(error)) from None
    return settings


def _read(path: Path) -> bytes:
    """The content of a config file, which may be a link to one. BadConfig for anything else; OSError."""
    # Who opens a pipe waits for its other end; to a regular file O_NONBLOCK is nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadConfig(path, 1, "a directory, a device or a pipe, and no file")
        content = os.read(descriptor, CONFIG_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > CONFIG_BYTES_MAX:
        raise BadConfig(path, 1, f"longer than {format_bytes(CONFIG_BYTES_MAX)}")
    return content


def _line_of(key: str, text: str) -> int:
    """The line where a key stands; that of a key left out is the first."""
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line):
            return number
    return 1


def render(settings: Settings) -> str:
    """The config file as text: every key, each under a comment that says what it means."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment(f"fusemirror: the mirrored filesystem {settings.name} on this host."))
    document.add(tomlkit.comment("See fusemirror.toml(5). A change takes effect at the next mount."))
    for key, description in descriptions().items():
        document.add(tomlkit.nl())
        document.add(tomlkit.comment(description))
        value = getattr(settings, key)
        if isinstance(value, StrEnum):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        document.add(key, _exact_size(value) if key in BYTE_KEYS else value)
    return tomlkit.dumps(document)


def _exact_size(count: int) -> int | str:
    """A size with a unit where that loses nothing."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB)):
        if count and count % factor == 0:
            return f"{count // factor} {unit}"
    return count


class KernelSession(StrEnum):
    """Who reads and answers the kernel's requests."""

    FUSEMIRROR = "fusemirror"
    PYFUSE3 = "pyfuse3"


class MountOptions(msgspec.Struct, frozen=True):
    """How one mount was asked for. `fuse` are options for libfuse, in their order; `ignored` says for people
    which of those given are not honoured, and what holds instead."""

    fuse: tuple[str, ...] = ()
    debug: bool = False
    session: KernelSession = KernelSession.FUSEMIRROR
    relatime: bool = False
    ignored: tuple[str, ...] = ()
