"""An import contract that import-linter lacks: an outside package that only some modules may import.

Named in `pyproject.toml` under `contract_types`. A `forbidden` contract cannot say "all modules but those whose name
begins with", since its wildcards stand for whole segments of a name.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def is_allowed(module: str, patterns: list[str]) -> bool:
    """Whether `module`, or a package it lies in, matches one of `patterns` (shell wildcards)."""
    parts = module.split(".")
    packages = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(fnmatchcase(package, pattern) for package in packages for pattern in patterns)


class OnlyImportedBy(Contract):
    """`imported` (an outside package) is imported directly by modules matching `allowed` alone."""

    imported = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect the imports that the contract does not allow."""
        imported: Any = self.imported
        importers = graph.find_modules_that_directly_import(imported) if imported in graph.modules else set()
        allowed: Any = self.allowed
        broken = sorted(module for module in importers if not is_allowed(module, allowed))
        output.verbose_print(verbose, f"{imported} is imported by {len(importers)} modules")
        lines = {
            module: sorted(
                detail["line_number"] for detail in graph.get_import_details(importer=module, imported=imported)
            )
            for module in broken
        }
        return ContractCheck(kept=not broken, metadata={"lines": lines})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name every import that has to go."""
        allowed: Any = self.allowed
        for module, numbers in check.metadata["lines"].items():
            where = ", ".join(f"line {number}" for number in numbers)
            output.print_error(f"{module} imports {self.imported} ({where}); only {', '.join(allowed)} may.")
