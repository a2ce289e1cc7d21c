"""What was measured, as a table for people and as JSON for scripts."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.jobs import Figure

JUDGE = "glusterfs"  # what floors are for,
STRICT = "glusterfs-strict"  # and what they are shown against, too: it promises what fusemirror promises
REFERENCES = (
    "primary-pyfuse3",
    "backup-pyfuse3",
    "passthrough",
    "passthrough-own",
    "bare-mirror",
    "bare-mirror-tls",
    "bare-mirror-tls-here-first",
    "limit",
    JUDGE,
    "glusterfs-sync",
    STRICT,
)
MEASURED = ("primary", "backup")
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Highest memory that the processes of a system held during a job, in bytes."""

    job: str
    system: str
    peak_rss_bytes: int
    peak_rss_anon_bytes: int


@dataclass
class Report:
    """The figures of one run, by figure and system."""

    systems: Sequence[str]
    figures: list[Figure] = field(default_factory=list)
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    spread: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """The lowest and the highest that the rounds found, where that is to be shown."""
    scale: dict[str, float] = field(default_factory=dict)

    def ratio(self, figure: Figure, system: str, reference: str) -> float | None:
        """How many times `reference` a system reaches, or None if one was not measured."""
        value, base = (self.values.get((figure.key, name)) for name in (system, reference))
        return value / base if value is not None and base else None

    def table(self) -> str:
        """Figures by system, then the ratios to the others, with the floors that were set."""
        absolute = [["", "", *self.systems], *([*self._line(figure)] for figure in self.figures)]
        blocks = [absolute, *(self._ratio_rows(system) for system in MEASURED), self._memory_rows()]
        return "\n\n".join([self._title(), *("\n".join(aligned(block)) for block in blocks if block)])

    def _title(self) -> str:
        facts, rounds, seconds = machine(), self.scale["rounds"], self.scale["seconds"]
        where = f"{facts['cpus']} CPUs, Linux {facts['kernel']}"
        return f"{where}, {rounds:g} rounds of {seconds:g} s a job; compare within this run only"

    def _line(self, figure: Figure) -> Iterable[str]:
        yield figure.title
        yield figure.unit
        for system in self.systems:
            value = self.values.get((figure.key, system))
            spread = self.spread.get((figure.key, system))
            between = "" if spread is None else f" ({spread[0]:,.0f} to {spread[1]:,.0f})"
            yield "-" if value is None else f"{value:,.0f}{between}"

    def _ratio_rows(self, system: str) -> list[list[str]]:
        references = [reference for reference in REFERENCES if reference in self.systems]
        if system not in self.systems or not references:
            return []
        judges = [judge for judge in (JUDGE, STRICT) if judge in self.systems]
        rows = [[f"{system}: times as fast as", *references, *(f"floor ({judge})" for judge in judges)]]
        for figure in self.figures:
            ratios = [self.ratio(figure, system, reference) for reference in references]
            shown = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            rows.append([figure.title, *shown, *(self._floor(figure, system, judge) for judge in judges)])
        return rows

    def _floor(self, figure: Figure, system: str, judge: str) -> str:
        floor, ratio = figure.floors.get(system), self.ratio(figure, system, judge)
        if floor is None or ratio is None:
            return ""
        return f"{floor:g} {'held' if ratio >= floor else 'MISSED'}"

    def _memory_rows(self) -> list[list[str]]:
        rows = [["peak memory over all jobs", "", "RSS", "anonymous"]]
        for system in self.systems:
            mine = [memory for memory in self.memory if memory.system == system]
            if mine:
                rss = max(memory.peak_rss_bytes for memory in mine) / MIB
                anonymous = max(memory.peak_rss_anon_bytes for memory in mine) / MIB
                rows.append([system, "MiB", f"{rss:,.0f}", f"{anonymous:,.0f}"])
        return rows

    def missed(self) -> list[str]:
        """Floors that were measured and not reached."""
        return [
            f"{figure.key}: {system} {ratio:.2f} < {floor:g}"
            for figure in self.figures
            for system, floor in figure.floors.items()
            if (ratio := self.ratio(figure, system, JUDGE)) is not None and ratio < floor
        ]

    def write_json(self, path: Path) -> None:
        """Everything that was measured. Rates per second, sizes in bytes unless the unit says MiB/s."""
        figures = [
            {
                **asdict(figure),
                "values": {name: self.values.get((figure.key, name)) for name in self.systems},
                "ratios": {
                    f"{system}:{reference}": self.ratio(figure, system, reference)
                    for system in MEASURED
                    for reference in REFERENCES
                },
            }
            for figure in self.figures
        ]
        memory = [asdict(one) for one in self.memory]
        whole = {"machine": machine(), "scale": self.scale, "figures": figures, "memory": memory}
        path.write_text(json.dumps(whole | {"floors_missed": self.missed()}, indent=2) + "\n")


def machine() -> dict[str, str | int]:
    """What a figure depends on besides the code."""
    return {"cpus": os.cpu_count() or 0, "kernel": platform.release(), "python": platform.python_version()}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
