"""Table 5: times that no A100 reaches, and whose layers its matrices are."""

from collections.abc import Iterator

import pandas as pd

from esparse_lab.audit.finding import Finding
from esparse_lab.audit.printed import Printed
from esparse_lab.gemm.table5 import A100_GBPS, A100_TFLOPS, shape_owners, table5_audit


def product_rates(printed: Printed) -> pd.DataFrame:
    """`table5_audit` of these tables; no rows where Table 5 is not among them."""
    cells = printed.select(5)
    return table5_audit(cells.astype(dict.fromkeys("mkn", int))) if len(cells) else cells


def too_fast(printed: Printed) -> Iterator[Finding]:
    """Times that would need more arithmetic or traffic a second than an A100 has."""
    for rate in product_rates(printed).to_dict("records"):
        for form, speed in (("dense", 1), ("sparse", 2)):
            for unit, peak in (("tflops", speed * A100_TFLOPS), ("gbps", A100_GBPS)):
                value, ms = rate[f"{form}_{unit}"], rate[f"{form}_ms"]
                if value > peak:
                    size = f"{rate['m']} × {rate['k']} × {rate['n']}"
                    yield Finding(
                        *("impossible", "substance", "rate", "Table 5"),
                        f"{rate['stage']} {rate['layer']}, {form}",
                        f"{size} in {ms:g} ms takes {value:.0f} {unit}; an A100 has {peak:.0f}",
                        f"{ms:g}",
                        f"{ms * value / peak:.3f}",
                        ms * (1 - value / peak),
                    )


def shapes_of_no_model(printed: Printed) -> Iterator[Finding]:
    """Weights of Table 5 that no model of the other tables has, whole or split over devices."""
    models = {*printed.cells.model}
    owners = shape_owners().sort_values("matching", ascending=False, kind="stable")
    best, tested = owners.iloc[0], owners[owners.model.isin(models)].head(1)
    if best.model in models or printed.select(5).empty:
        return
    yield Finding(
        *("unsaid", "substance", "shapes", "Table 5", "whose layers are timed"),
        f"{best.matching} of the 4 weights are layers of {best.model} split over {best.devices} "
        f"devices, at most {tested.matching.sum()} of a model whose accuracy or memory is given",
        recomputed=f"{best.model} over {best.devices} devices",
    )
