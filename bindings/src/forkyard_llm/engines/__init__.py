"""One adapter per engine family, behind the interface of :mod:`forkyard_llm.engines.base`."""
