"""Imports run one way, and decisions reach for nothing. Read from the code itself, so that it cannot be forgotten."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("schemas",),
    ("broker.core",),
    ("broker.errors", "broker.clock", "broker.failpoints", "broker.metrics", "broker.secrets"),
    ("broker.log",),
    ("broker", "workers"),
    ("broker.compose", "broker.trial", "broker.cli", "broker.commands"),
)
"""From the ground up. A module belongs to the layer with its longest prefix and may import that layer and lower."""

WORLD = {"asyncio", "time", "random", "logging", "socket", "os", "aiohttp", "aiokafka", "uvloop", "threading"}
"""What a decision never imports: ARCHITECTURE.md."""


def layer_of(module: str) -> int:
    """Return the layer of a module by its longest named prefix."""
    best, layer = "", -1
    for i, names in enumerate(LAYERS):
        for name in names:
            if (module == name or module.startswith(name + ".")) and len(name) > len(best):
                best, layer = name, i
    return layer


def imports_of(path: Path, module: str) -> list[str]:
    """Return the modules a file imports, those of ours by their full names."""
    found: list[str] = []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def modules() -> list[tuple[str, Path]]:
    """Return every module of the product with its file."""
    found = []
    for top in ("schemas", "broker", "workers"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def test_imports_run_one_way() -> None:
    """schemas, decisions, ground, logs, stages, composition: nothing below knows what stands above it."""
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        for name in imports_of(path, module)
        if layer_of(name) > layer_of(module)
    ]
    assert wrong == []


def test_decisions_do_not_reach_for_the_world() -> None:
    """A decision that reads a clock, draws a number or writes a log line could not be simulated or reasoned about."""
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        if module == "broker.core" or module.startswith("broker.core.")
        for name in imports_of(path, module)
        if name.partition(".")[0] in WORLD
    ]
    assert wrong == []


def test_the_layers_know_every_module() -> None:
    """A new top-level package without a layer would escape the rule."""
    assert [module for module, _ in modules() if layer_of(module) < 0] == []
    assert len(modules()) > 10
