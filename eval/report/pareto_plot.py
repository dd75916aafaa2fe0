"""The Pareto plot on a page: its legend, and a drawing for wide and one for narrow screens."""

from __future__ import annotations

from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.report.plots import marker_svg, pareto_svg
from ditaccel.eval.report.series import pareto_points, series_styles


def _legend(evaluation: Evaluation) -> Markup:
    words = {"fewer_steps": " (baseline)", "method": "", "peer": " (other tool)"}
    points = pareto_points(evaluation)
    items = []
    for name, style in series_styles(evaluation).items():
        if name not in points:
            continue
        swatch = el(
            "svg",
            el("line", x1=0, x2=34, y1=9, y2=9, cls=f"series {style.role}",
               style=f"--c:var({style.variable})"),
            marker_svg(style, 17, 9, 5),
            viewBox="0 0 34 18", width=34, height=18, aria_hidden="true",
        )  # fmt: skip
        text = name + words[style.role]
        items.append(
            el(
                "li",
                el("button", swatch, el("span", breakable(text)), type="button", data_series=name),
            )
        )
    return el("ul", items, cls="key")


def pareto(evaluation: Evaluation, height: int) -> Markup:
    """Legend and plot.

    Args:
        evaluation: what to plot.
        height: of the wide drawing in CSS pixels.

    Raises:
        UsageError: no configuration has both a speed-up and a PSNR.
    """
    return el(
        "div",
        _legend(evaluation),
        el("div", pareto_svg(evaluation, 1080, height, 13), cls="plot wide"),
        el("div", pareto_svg(evaluation, 400, 440, 12.5), cls="plot narrow"),
        cls="pareto",
    )
