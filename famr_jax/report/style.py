"""Colours and CSS of a report page: light on screen and paper, dark where a reader asks for it."""

from importlib.resources import files

from famr_jax.report.plot import COLOURS, colour

__all__ = ["COLOURS", "CSS", "colour"]


def _variables(scheme: int) -> str:
    return "".join(f"--{name}:{pair[scheme]};" for name, pair in COLOURS.items())


CSS = (
    f":root{{{_variables(0)}}}\n@media screen and (prefers-color-scheme:dark){{:root{{"
    + _variables(1)
    + "}}"
    + files("famr_jax.report").joinpath("page.css").read_text()
)
