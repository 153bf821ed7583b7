"""Write probe.c: a tiny library that tells what layout the real compiler gave the engine's records."""

from __future__ import annotations

from pathlib import Path

from forkyard.abi.model import Abi, layout_rows, render_include

CANDIDATES_SOURCE = Path(__file__).with_name("candidates.c")
CANDIDATE_RECORD = "llama_token_data"

BUILD_KEY_MACRO = "FORKYARD_BUILD_KEY"
ABI_SHA256_MACRO = "FORKYARD_ABI_SHA256"


def render_probe(abi: Abi, build_key_macro: str = BUILD_KEY_MACRO, abi_sha256_macro: str = ABI_SHA256_MACRO) -> str:
    """The text of ``probe.c`` for ``abi``: C11, to be compiled with the engine's own flags and include folders.

    The two macros must be given to the compiler as string literals (``-DFORKYARD_BUILD_KEY="..."``). The exported
    functions are ``forkyard_probe_build_key``, ``forkyard_probe_abi_sha256`` and ``forkyard_probe_layout``; the last
    sets its argument to the numbers that ``PROBE_LAYOUT`` of the generated module lists, in that order, and returns
    how many they are.

    Where the headers declare ``struct llama_token_data``, the library also gets ``forkyard_probe_candidates`` (see
    candidates.c): what the bindings need of C for every token and neither engine's API offers.
    """
    includes = "".join(
        render_include(header, abi.tags.get(header, ())) for header in abi.includes if header not in abi.not_c
    )
    rows = list(layout_rows(abi))
    candidates = ""
    if any(record.name == CANDIDATE_RECORD and record.header not in abi.not_c for record in abi.records):
        candidates = CANDIDATES_SOURCE.read_text(encoding="utf-8")
    values = "".join(f"    {row.expression},\n" for row in rows)
    return f"""\
/* Layout probe, generated from the engine's headers. Do not edit. */

{includes}
#include <stddef.h>
#include <stdint.h>

#ifndef {build_key_macro}
#error "{build_key_macro} must be defined as a string literal"
#endif
#ifndef {abi_sha256_macro}
#error "{abi_sha256_macro} must be defined as a string literal"
#endif

#if defined(_WIN32)
#define FORKYARD_EXPORT __declspec(dllexport)
#else
#define FORKYARD_EXPORT __attribute__((visibility("default")))
#endif

FORKYARD_EXPORT const char * forkyard_probe_build_key(void);
FORKYARD_EXPORT const char * forkyard_probe_abi_sha256(void);
FORKYARD_EXPORT uint32_t forkyard_probe_layout(const uint64_t ** values);

const char * forkyard_probe_build_key(void) {{
    return {build_key_macro};
}}

const char * forkyard_probe_abi_sha256(void) {{
    return {abi_sha256_macro};
}}

/* The last entry ends the table and keeps it non-empty; it is not counted. */
static const uint64_t forkyard_layout[] = {{
{values}    0
}};

uint32_t forkyard_probe_layout(const uint64_t ** values) {{
    *values = forkyard_layout;
    return {len(rows)}u;
}}
{candidates}"""
