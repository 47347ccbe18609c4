"""The picture of a soak."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from chaos.curves import CURVES, FAULTS, HEIGHT, LEFT, RIGHT, WIDTH, svg, ticks
from chaos.soak_result import Faults, Sample, SoakResult

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def result_of_ten_minutes() -> SoakResult:
    result = SoakResult(0)
    for minute, faults in [
        (0, Faults.NONE),
        (2, Faults.SOME),
        (3, Faults.UNREACHABLE),
        (4, Faults.ALL),
        (5, Faults.ALL),
        (8, Faults.NONE),
    ]:
        result.set_faults(faults, minute)
    for minute in range(11):
        result.samples.append(Sample(minute, 100.0 + minute, 50, 120, 10 * minute, 100 * minute, 0))
    return result


def drawn(result: SoakResult) -> list[Element]:
    return list(ET.fromstring(svg(result)).iter())  # noqa: S314 - our own text


def number(element: Element, name: str) -> float:
    return float(element.attrib[name])


def test_each_curve_has_a_band_where_requests_met_faults() -> None:
    """The bands begin and end with the faults, and periods without faults have none."""
    pixels_per_minute = (WIDTH - LEFT - RIGHT) / 10
    expected = {Faults.SOME: (2, 3), Faults.UNREACHABLE: (3, 4), Faults.ALL: (4, 8)}

    bands = [one for one in drawn(result_of_ten_minutes()) if one.attrib.get("height") == str(HEIGHT)]

    assert len(bands) == len(CURVES) * len(expected)
    for band in bands:
        begin, end = expected[Faults(band.attrib["class"])]
        assert number(band, "x") == pytest.approx(LEFT + begin * pixels_per_minute, abs=0.1)
        assert number(band, "width") == pytest.approx((end - begin) * pixels_per_minute, abs=0.1)


def test_legend_names_each_kind_of_fault_above_the_curves() -> None:
    """No label and no swatch of the legend covers data."""
    elements = drawn(result_of_ten_minutes())
    legend = [one for one in elements if one.text in FAULTS.values()]
    curves = [one for one in elements if one.attrib.get("class") == "curve"]
    highest = min(float(point.split(",")[1]) for one in curves for point in one.attrib["points"].split())

    assert [one.text for one in legend] == list(FAULTS.values())
    assert max(number(one, "y") for one in legend) < highest
    assert len(curves) == len(CURVES)


def test_curves_stay_inside_their_axes() -> None:
    """The lowest value is at or above zero's line, the highest at or below the topmost mark."""
    elements = drawn(result_of_ten_minutes())
    zeros = [number(one, "y1") for one in elements if one.attrib.get("class") == "axis"]
    curves = [one for one in elements if one.attrib.get("class") == "curve"]

    for zero, curve in zip(zeros, curves, strict=True):
        heights = [zero - float(point.split(",")[1]) for point in curve.attrib["points"].split()]
        assert min(heights) >= 0
        assert max(heights) <= HEIGHT


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(112, [0, 50, 100, 150]), (1, [0, 0.5, 1]), (3000, [0, 1000, 2000, 3000]), (5, [0, 2, 4, 6])],
)
def test_marks_are_round_numbers_that_enclose_the_data(highest: float, expected: list[float]) -> None:
    """From zero to the first round number that is not below the highest value."""
    assert ticks(highest, 3) == expected
