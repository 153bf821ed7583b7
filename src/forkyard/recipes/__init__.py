"""Recipes, variants and locks: what is to be built, as checked data."""

from forkyard.recipes.known import KnownPin, load_known_pins
from forkyard.recipes.load import AbsentEntry, load_absent, load_recipe, load_variants, recipe_names
from forkyard.recipes.lock import (
    Difference,
    Lock,
    LockedFile,
    LockedSource,
    LockedStack,
    read_lock,
    verify,
    write_lock,
)
from forkyard.recipes.model import (
    FAMILIES,
    Build,
    GitSource,
    LocalSource,
    Pin,
    Recipe,
    RegistrySource,
    Source,
)
from forkyard.recipes.variants import (
    ResolvedVariant,
    Variant,
    Variants,
    configure_options,
    resolve,
    supported,
)

__all__ = [
    "FAMILIES",
    "AbsentEntry",
    "Build",
    "Difference",
    "GitSource",
    "KnownPin",
    "LocalSource",
    "Lock",
    "LockedFile",
    "LockedSource",
    "LockedStack",
    "Pin",
    "Recipe",
    "RegistrySource",
    "ResolvedVariant",
    "Source",
    "Variant",
    "Variants",
    "configure_options",
    "load_absent",
    "load_known_pins",
    "load_recipe",
    "load_variants",
    "read_lock",
    "recipe_names",
    "resolve",
    "supported",
    "verify",
    "write_lock",
]
