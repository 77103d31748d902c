"""A report's colours are told apart with any colour vision, those that may stand in one plot from each other."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from moevit.cli.report.plots import CAUSE_COLOURS, TYPE_COLOURS
from moevit.cli.report.style import INK, KIND_COLOURS, METHOD_COLOURS

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009),
# severity 1.0, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)
LEAST = 10.0  #: of CIE 1976's difference; about 2.3 is just seen side by side


def lab(colour: str, vision: NDArray) -> NDArray:
    """CIE L*a*b* of a colour as somebody sees it."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(vision @ linear, 0, 1) / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [KIND_COLOURS, METHOD_COLOURS, CAUSE_COLOURS, TYPE_COLOURS])
def test_no_two_look_alike(palette: dict[str, str], vision: str) -> None:
    for one, other in itertools.combinations(sorted(set(palette.values())), 2):
        difference = np.linalg.norm(lab(one, VISION[vision]) - lab(other, VISION[vision]))
        assert difference > LEAST, (one, other)


def test_the_measure_finds_what_looks_alike() -> None:
    """Red and green of equal lightness, which matplotlib's first colours are nearly."""
    red, green = "#a8442a", "#5f6a1e"
    usual, protan = (np.linalg.norm(lab(red, VISION[v]) - lab(green, VISION[v])) for v in ("usual", "protanopia"))
    assert usual > 40
    assert protan < usual / 3


def test_text_stands_out() -> None:
    assert lab("#ffffff", VISION["usual"])[0] - lab(INK, VISION["usual"])[0] > 80
