"""The manifest of a payload: everything somebody who holds only the wheel can ask about it."""

from __future__ import annotations

from typing import Any

from forkyard.plan import Plan, origin_of
from forkyard.sources import Obtained
from forkyard.stacks import PatchedTree
from forkyard.trees import declared_absent, headers_of

SCHEMA = 1
_WITH_NCCL = {"CUDA", "HIP"}
_NCCL = ("libnccl.so", "librccl.so")


def make_manifest(
    plan: Plan, obtained: Obtained, patched: PatchedTree, checkout_tree: str, abi_sha256: str
) -> dict[str, Any]:
    """The manifest without ``libraries``, which CMake adds: only it knows which libraries the tools need.

    Nothing in it depends on the machine that builds, so it is part of the reproducible bytes.
    """
    stacks = []
    for stack in plan.stacks:
        stacks.append(
            {
                "name": stack.name,
                "title": stack.about.title,
                "capability": stack.about.capability,
                "patches": [
                    {
                        "file": patch.name,
                        "sha256": patch.sha256,
                        "subject": patch.subject,
                        "upstream_status": patch.trailers.upstream_status,
                    }
                    for patch in patched.patches
                    if patch.stack == stack.name
                ],
                "files": [{"path": file.path, "sha256": file.sha256} for file in patched.files.get(stack.name, ())],
                "headers": headers_of(stack, patched),
            }
        )
    return {
        "schema": SCHEMA,
        "distribution": plan.distribution,
        "package": plan.package,
        "version": plan.version(obtained.date),
        "engine": plan.recipe.family,
        "recipe": plan.recipe.name,
        "title": plan.recipe.title,
        "variant": plan.variant.name,
        "kind": plan.variant.kind,
        "machine": plan.variant.machine,
        "pin": {
            "commit": obtained.commit,
            "tree": obtained.tree,
            "date": obtained.date,
            "build_number": obtained.build_number,
        },
        "patched": {
            "commit": patched.commit,
            "tree": patched.tree,
            "checkout_tree": checkout_tree,
            "absent": list(declared_absent(plan.recipe)),
        },
        "source": origin_of(plan.recipe),
        "stacks": stacks,
        "capabilities": sorted(stack.about.capability for stack in plan.stacks if stack.about.capability),
        "cpu_features": list(plan.variant.features),
        "rank": plan.variant.rank,
        # The best first. What is not here is the same for all.
        "members": [
            {
                "name": one.name,
                "cpu_features": list(one.features),
                "rank": one.rank,
                "flags": list(one.flags),
                "libraries": {plan.recipe.build.cpu_target: plan.cpu_library(one.name)},
            }
            for one in reversed(plan.variant.members)
        ],
        "backend": _backend(plan),
        "hardware": plan.variant.hardware,
        "cmake": plan.options,
        "compile_flags": {
            "c": list(plan.c_flags),
            "cxx": list(plan.cxx_flags),
            plan.recipe.build.cpu_target: list(plan.cpu_flags),
        },
        "toolchain": plan.toolchain.as_json(),
        "build_tools": plan.inputs["build_tools"],
        "build_key": plan.key,
        "abi_sha256": abi_sha256,
        "tools": {tool: f"bin/{tool}" for tool in plan.tools},
    }


def _links_nccl(plan: Plan) -> bool | None:
    """Whether the GPU code links to NCCL, or AMD's library of the same interface; ``None`` for GPUs without one.

    The variant names all that the code links to, and a gate compares it with what was linked.
    """
    backend, kit = plan.variant.backend, plan.variant.toolkit
    if backend is None or kit is None or not _WITH_NCCL & set(kit.languages):
        return None
    return any(soname.startswith(_NCCL) for soname in backend.libraries)


def _backend(plan: Plan) -> dict[str, Any] | None:
    """What a payload for GPUs, or other machines, was compiled with, and what it needs beside itself."""
    backend = plan.variant.backend
    if backend is None:
        return None
    return {
        "toolkit": dict(plan.toolkit.identity) if plan.toolkit else None,
        "remote": backend.remote,
        "architectures": list(backend.architectures),
        "library": plan.variant.module,
        "requires": list(backend.requires),
        "needs": list(backend.libraries),
        "nccl": _links_nccl(plan),
        "driver": backend.driver,
        "cache_types": list(plan.variant.cache_types),
    }
