"""What only makes sense inside a notebook: setting up, showing things so that they also read on paper, recording."""

from .drawing import show_chain
from .forms import form
from .live import board, progress
from .pictures import show_figure, show_image, show_map, show_products, show_timeline
from .setting_up import setup
from .showing import record, show_statements, show_table

__all__ = [
    "board",
    "form",
    "progress",
    "record",
    "setup",
    "show_chain",
    "show_figure",
    "show_image",
    "show_map",
    "show_products",
    "show_statements",
    "show_table",
    "show_timeline",
]
