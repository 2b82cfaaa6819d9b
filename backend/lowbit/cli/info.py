"""`lowbit info [MODEL]`: the machine, and what would be chosen on it; of a model also what it takes in memory."""

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
    parser.add_argument("model", nargs="?", help="a model that generates text: what it takes in memory")
    parser.add_argument("--low-bit", default="sym_int4", metavar="FORMAT", help="of the model (default: sym_int4)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(arguments: Arguments) -> None:
    """Prints the machine and what would be chosen on it, with reasons."""
    import lowbit
    from lowbit.runtime import describe

    facts = {"version": lowbit.__version__, "python": ".".join(map(str, sys.version_info[:3])), **describe()}
    if arguments.model is not None:
        facts["model"] = _about(lowbit.load(arguments.model, arguments.low_bit))
    if arguments.json:
        out(json.dumps(facts, indent=2) + "\n")
        return
    width = max(len(name) for name, _ in _info_lines(facts)) + 2
    out("".join(f"{name:<{width}}{text}\n" for name, text in _info_lines(facts)))


def _about(model: Any) -> dict[str, Any]:
    from lowbit.precision import outlier_matrices

    errors = model.loaded.activation_errors
    return {
        "family": model.spec.family,
        "context": model.context,
        "format": model.quantization.get("format"),
        "memory": model.memory(),
        "precision": {
            "matrices": len(errors),
            "outliers": {name: errors[name] for name in outlier_matrices(errors, "auto")},
        },
    }


def _model_lines(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory, context = model["memory"], model["context"]
    token, limit = memory["token_bytes"], memory["idle_limit_bytes"]
    yield "model", f"{model['family']}, {model['format'] or 'not quantised'}, weights {size(memory['weights_bytes'])}"
    yield "kv cache", f"{size(token)} per token, {size(token * context)} for the whole context of {context}"
    outliers, matrices = model["precision"]["outliers"], model["precision"]["matrices"]
    if not matrices:
        yield "activations", "int8 in every matrix that can: their errors were not measured"
    else:
        named = ", ".join(f"{name} ({error:.1%})" for name, error in outliers.items())
        yield (
            "activations",
            f"int8 in {matrices - len(outliers)} of {matrices} matrices" + (f"; bf16 in {named}" if outliers else ""),
        )
    yield "kept", f"sessions of up to {size(limit)} or {limit // token} tokens, what they share counted once"


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
    if "model" in facts:
        yield from _model_lines(facts["model"])
    for decision in facts["decisions"]:
        yield decision["name"], f"{decision['value']} ({decision['reason']})"
    for decision in facts["environment"]:
        yield decision["name"], f"{decision['value']} ({decision['reason']})"
