"""Grammars: GBNF, or JSON schemas that the engine in use makes a grammar of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from forkyard_llm.engines.common import CAPABILITY, schema_to_grammar
from forkyard_llm.errors import UsageError
from forkyard_llm.loading import load
from forkyard_llm.payloads import Payload
from forkyard_llm.selection import select

from ._engine import default_engine

__all__ = ["LLAMA_GRAMMAR_DEFAULT_ROOT", "LlamaGrammar", "json_schema_to_gbnf"]

LLAMA_GRAMMAR_DEFAULT_ROOT = "root"


class LlamaGrammar:
    """A grammar that a text follows. Make one with ``from_string``, ``from_file`` or ``from_json_schema``."""

    def __init__(self, *args: Any, _grammar: str = "", _schema: str = "", **kwargs: Any) -> None:
        self._text = _grammar
        self._schema = _schema
        self._root = LLAMA_GRAMMAR_DEFAULT_ROOT

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar in GBNF. The engine reads it when it is first used, and what is wrong raises UsageError then."""
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A file with GBNF. Raises FileNotFoundError, and UsageError where nothing is in it."""
        text = Path(file).read_text(encoding="utf-8")
        if not text.strip():
            msg = f"{os.fspath(file)} has no grammar: it is empty"
            raise UsageError(msg)
        return cls.from_string(text)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """The grammar of JSON that a schema describes. Raises UsageError for what is no JSON."""
        try:
            json.loads(json_schema)
        except (TypeError, ValueError) as error:
            msg = f"the JSON schema is no JSON: {error}"
            raise UsageError(msg) from error
        return cls(_schema=json_schema)

    def text(self, payload: Payload) -> str:
        """The grammar in GBNF, with a schema's made by the engine of ``payload``.

        Raises:
            UnsupportedOption: that payload cannot make a grammar of a schema.
            UsageError: no grammar can be made of the schema.
        """
        if not self._schema:
            return self._text
        loaded = load(payload).loaded
        loaded.need(CAPABILITY, "a JSON schema")
        return schema_to_grammar(loaded, self._schema)

    @property
    def _grammar(self) -> str:
        """The grammar in GBNF, by the engine that a ``Llama`` takes which is asked for none."""
        return self.text(select(default_engine())) if self._schema else self._text


def json_schema_to_gbnf(schema: str, prop_order: list[str] | None = None) -> str:
    """The grammar of a JSON schema, properties in the schema's order.

    Raises:
        UsageError: another order, or no grammar can be made of it.
    """
    if prop_order:
        msg = "prop_order is not supported: write the properties of the schema in the order that you want"
        raise UsageError(msg)
    return LlamaGrammar.from_json_schema(schema)._grammar
