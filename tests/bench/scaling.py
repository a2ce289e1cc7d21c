"""What many files cost: memory, start-up, lookups."""

from pathlib import Path


def hundred_thousand(directory: Path) -> str:
    return ""


def million(directory: Path) -> str:
    return ""
