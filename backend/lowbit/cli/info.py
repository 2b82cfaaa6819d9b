"""`lowbit info`: the machine, and what would be chosen on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from lowbit.cli._common import Arguments, out, size

SUMMARY = "Show CPU features, tier, threads, memory and devices, and why they were chosen."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(arguments: Arguments) -> None:
    """Prints the machine and what would be chosen on it, with reasons."""
    import lowbit
    from lowbit.runtime import describe

    facts = {"version": lowbit.__version__, "python": ".".join(map(str, sys.version_info[:3])), **describe()}
    if arguments.json:
        out(json.dumps(facts, indent=2) + "\n")
        return
    width = max(len(name) for name, _ in _info_lines(facts)) + 2
    out("".join(f"{name:<{width}}{text}\n" for name, text in _info_lines(facts)))


def _info_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cpu, memory, pages = facts["cpu"], facts["memory"], facts["huge_pages"]
    cores = "" if cpu["physical_cores"] is None else f" on {cpu['physical_cores']} physical cores"
    yield "lowbit", f"{facts['version']}, Python {facts['python']}"
    yield "cpu", f"{cpu['brand'] or cpu['vendor'] or 'unknown'}, {len(cpu['allowed_cpus'])} CPUs allowed{cores}"
    yield "features", " ".join(cpu["features"]) or "none that count"
    yield "tiers", " ".join(cpu["tiers"])
    limit = "" if memory["limit"] is None else f", control group allows {size(memory['limit'])}"
    yield "memory", f"{size(memory['available'])} available of {size(memory['total'])}{limit}"
    advice = "; the weights get 4 KiB pages and stream slower" if pages["mode"] == "never" else ""
    yield "huge pages", f"{pages['mode'] or 'unknown'}, {size(pages['page_bytes'])} each{advice}"
    for device in facts["devices"]:
        state = "usable" if device["usable"] else f"not usable: {'; '.join(device['missing'])}"
        yield "device", f"{device['name']} ({device.get('pci') or device['kind']}): {state}"
    for decision in facts["decisions"]:
        yield decision["name"], f"{decision['value']} ({decision['reason']})"
    for decision in facts["environment"]:
        yield decision["name"], f"{decision['value']} ({decision['reason']})"
