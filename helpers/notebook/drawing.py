"""The chain from an order to the catalogue as a picture, with the same facts as a text and as a table."""

from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from .pictures import show_figure
from .showing import show_table

if TYPE_CHECKING:
    from ..chain import Link

#: Ground and edge of a box by state: colour-blind safe, and told apart by the sign, the word and the kind of edge.
LOOKS = {
    "there": ("#d9f0e6", "#009E73", "-"),
    "at work": ("#dcf0fa", "#0072B2", "-"),
    "failed": ("#fbe3d6", "#D55E00", "-"),
    "nothing yet": ("#ffffff", "#767676", "--"),
    "not configured": ("#ffffff", "#767676", ":"),
    "refused": ("#fbe3d6", "#D55E00", ":"),
    "no answer": ("#fdf3d6", "#8a6d00", ":"),
}
#: Letters of a line in a box, and lines that have room beneath its title.
LETTERS, LINES = 32, 3


def show_chain(links: "Iterable[Link]") -> None:
    """Show the places that :func:`helpers.chain.look` found, a column for each step: as a picture, and as a table."""
    from ..chain import SIGNS

    links = list(links)
    if not links:
        show_table([], "No step was looked at.")
        return
    steps = list(dict.fromkeys(link.step for link in links))
    columns = {step: [link for link in links if link.step == step] for step in steps}
    rows = max(map(len, columns.values()))
    figure = Figure(figsize=(2.75 * len(steps), 0.5 + 1.05 * rows), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, len(steps)), ylim=(-rows, 0.5))
    axes.set_axis_off()
    for x, (step, places) in enumerate(columns.items()):
        axes.text(x + 0.5, 0.25, step.upper(), ha="center", va="center", fontsize=11, fontweight="bold")
        if x + 1 < len(steps):
            ends = {"xy": (x + 1.2, 0.25), "xytext": (x + 0.8, 0.25)}
            axes.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "#444444"})
        for y, link in enumerate(places):
            _box(axes, x, -y, link, SIGNS[link.state])
    told = "; ".join(
        f"{link.place}: {link.state} ({link.facts.rstrip('.')}{_by(link, ', notebook ')})" for link in links
    )
    show_figure(figure, f"The chain {' -> '.join(steps)} as it is now. {told}.")
    show_table(
        [
            {
                "step": link.step,
                "what": link.place,
                "state": f"{SIGNS[link.state]} {link.state}",
                "now": link.facts,
                "brought by": _by(link, "notebook ") or "-",
            }
            for link in links
        ]
    )


def _box(axes: Any, x: float, y: float, link: "Link", sign: str) -> None:
    ground, edge, line = LOOKS[link.state]
    shape = {"boxstyle": "round,pad=0,rounding_size=0.04", "mutation_aspect": 1.5}
    looks = {"facecolor": ground, "edgecolor": edge, "linestyle": line, "linewidth": 1.5}
    axes.add_patch(FancyBboxPatch((x + 0.03, y - 0.95), 0.94, 0.9, **shape, **looks))
    axes.text(x + 0.07, y - 0.2, link.place[-LETTERS:], va="center", fontsize=9, fontweight="bold", color="#111111")
    hint = _by(link, ": notebook ") if link.state == "nothing yet" else ""
    lines = [f"{sign} {link.state}{hint}"]
    lines += (
        wrap(link.facts, LETTERS, max_lines=LINES, placeholder=" ...", break_on_hyphens=False)
        if link.state != "nothing yet"
        else []
    )
    axes.text(x + 0.07, y - 0.34, "\n".join(lines), va="top", fontsize=8, linespacing=1.3, color="#111111")


def _by(link: "Link", words: str) -> str:
    return f"{words}{link.notebook}" if link.notebook else ""
