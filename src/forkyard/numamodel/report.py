"""Predicted against published, row by row, and what was fitted on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forkyard.numamodel.architecture import WORKLOADS
from forkyard.numamodel.fitting import Fitted, fit_costs
from forkyard.numamodel.predict import tokens_per_second
from forkyard.numamodel.published import PEAK, ROWS, SOURCE, Row

TOLERANCE = 0.15
"""How far a figure may be off, relative to the published one."""
WANTED = 8
"""Rows that have to be reproduced, of the twelve."""


@dataclass(frozen=True)
class Compared:
    """A published row and its prediction, tokens per second."""

    row: Row
    isolate: float
    mirror: float

    @property
    def errors(self) -> tuple[float, float]:
        """Of both figures, relative to the published ones."""
        return self.isolate / self.row.isolate - 1, self.mirror / self.row.mirror - 1

    @property
    def gain(self) -> float:
        """Predicted mirror to predicted isolate."""
        return self.mirror / self.isolate

    @property
    def reproduced(self) -> bool:
        """Whether both figures are within the tolerance."""
        return all(abs(error) <= TOLERANCE for error in self.errors)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "model": self.row.model,
            "test": self.row.test,
            "published": {"isolate": self.row.isolate, "mirror": self.row.mirror, "gain": self.row.gain},
            "predicted": {"isolate": self.isolate, "mirror": self.mirror, "gain": self.gain},
            "errors": {"isolate": self.errors[0], "mirror": self.errors[1]},
            "reproduced": self.reproduced,
        }


@dataclass(frozen=True)
class Reproduction:
    """The whole table twice: with costs fitted to it, and every model with costs fitted to the other five."""

    fitted: Fitted
    rows: tuple[Compared, ...]
    unseen: tuple[Compared, ...]
    """Each model predicted without any figure of its own."""

    @property
    def ok(self) -> bool:
        """Whether enough rows are reproduced, both ways."""
        return min(count(self.rows), count(self.unseen)) >= WANTED

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        fitted = self.fitted
        return {
            "source": SOURCE,
            "tolerance": TOLERANCE,
            "wanted": WANTED,
            "ok": self.ok,
            "reproduced": count(self.rows),
            "reproduced_unseen": count(self.unseen),
            "rows": [one.as_json() for one in self.rows],
            "unseen": [one.as_json() for one in self.unseen],
            "fitted": {
                "share_of_peak": fitted.share,
                "bytes_per_s": fitted.share * PEAK,
                "operations_per_s": fitted.operations,
                "barrier_within_s": fitted.costs.barrier_within,
                "barrier_across_s": fitted.costs.barrier_across,
                "exchange_s_per_byte": fitted.costs.exchange,
                "spread": fitted.costs.spread,
            },
            "given": {"peak_bytes_per_s": PEAK},
            "models": {
                name: {
                    "weights": one.values,
                    "bytes": one.size,
                    "bytes_per_token": one.bytes_read(1, 1.0),
                    "operations_per_token": one.token_operations + one.head_operations,
                    "barriers": one.barriers,
                }
                for name, one in WORKLOADS.items()
            },
        }


def count(rows: Sequence[Compared]) -> int:
    """How many are reproduced."""
    return sum(one.reproduced for one in rows)


def reproduce(rows: Sequence[Row] = ROWS) -> Reproduction:
    """Fit, predict and compare."""
    fitted = fit_costs(rows)
    unseen = {
        model: fit_costs([row for row in rows if row.model != model]) for model in dict.fromkeys(r.model for r in rows)
    }
    return Reproduction(
        fitted,
        tuple(_compare(fitted, row) for row in rows),
        tuple(_compare(unseen[row.model], row) for row in rows),
    )


def _compare(fitted: Fitted, row: Row) -> Compared:
    machine, workload = fitted.machine, WORKLOADS[row.model]
    return Compared(
        row,
        tokens_per_second(machine.one_node(), workload, row.batch),
        tokens_per_second(machine, workload, row.batch),
    )


def as_text(found: Reproduction) -> str:
    """For people."""
    fitted, costs = found.fitted, found.fitted.costs
    lines = [
        f"published: {SOURCE}",
        "2x Xeon Gold 6248R, tokens per second; isolate: one socket, 24 threads; mirror: both, 48 threads",
        "",
        *_table(found.rows),
        "",
        f"{count(found.rows)} of {len(found.rows)} rows have both figures within {TOLERANCE:.0%}; "
        f"{WANTED} are asked for.",
        "",
        "given:   peak of 6 channels of DDR4-2400: "
        + f"{PEAK / 1e9:.1f} GB/s a socket; bytes, operations, barriers of "
        "each model",
        "fitted on isolate, 12 figures:",
        f"  sustained bandwidth      {fitted.share:.3f} of the peak, {fitted.share * PEAK / 1e9:.1f} GB/s a socket",
        f"  multiplying              {fitted.operations / 1e12:.2f} T operations/s a socket",
        f"  barrier within a socket  {costs.barrier_within * 1e6:.2f} us",
        f"  exchange of activations  {costs.exchange * 1e9:.2f} ns a byte",
        f"  experts a batch touches  {costs.spread:.2f} of what uniform routing would",
        "fitted on mirror tg128, 6 figures:",
        f"  barrier across sockets   {costs.barrier_across * 1e6:.2f} us",
        "fitted on nothing: mirror pp512, 6 figures",
        "",
        "each model predicted with costs fitted to the other five alone:",
        "",
        *_table(found.unseen),
        "",
        f"{count(found.unseen)} of {len(found.unseen)} rows have both figures within {TOLERANCE:.0%}.",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[Compared]) -> list[str]:
    width = max(len(one.row.model) for one in rows)
    lines = [
        f"{'':{width}} {'':5}  {'isolate':>23}   {'mirror':>23}   {'gain':>11}",
        f"{'model':{width}} {'test':5}  {'publ.':>7} {'pred.':>7} {'error':>7}   {'publ.':>7} {'pred.':>7} {'error':>7}"
        f"   {'publ.':>5} {'pred.':>5}",
    ]
    for one in rows:
        isolate, mirror = one.errors
        lines.append(
            f"{one.row.model:{width}} {one.row.test:5}  {one.row.isolate:7.2f} {one.isolate:7.2f} {isolate:+7.1%}"
            f"   {one.row.mirror:7.2f} {one.mirror:7.2f} {mirror:+7.1%}   {one.row.gain:5.2f} {one.gain:5.2f}"
            f"   {'ok' if one.reproduced else 'off'}"
        )
    return lines
