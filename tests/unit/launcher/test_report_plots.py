"""SVG plots: places, ticks, escaped words."""

from __future__ import annotations

import re

import pytest

from launcher.report.plots import Plane, colour, heat, legend, padded, ticks

PLANE = Plane(x=(0.0, 1.0), y=(0.0, 10.0), x_label="recall", y_label="precision")


def test_places_run_from_the_lower_left_to_the_upper_right() -> None:
    (left, bottom), (right, top) = PLANE.at(0, 0), PLANE.at(1, 10)
    assert float(left) < float(right)
    assert float(bottom) > float(top)
    middle = PLANE.at(0.5, 5)
    assert float(middle[0]) == pytest.approx((float(left) + float(right)) / 2, abs=0.1)
    assert float(middle[1]) == pytest.approx((float(bottom) + float(top)) / 2, abs=0.1)


def test_line_goes_through_its_points_and_says_what_it_is() -> None:
    html = PLANE.line([0, 1], [0, 10], "run-0", "spam & eggs")
    places = " ".join(",".join(PLANE.at(*pair)) for pair in ((0, 0), (1, 10)))
    assert f'points="{places}"' in html
    assert "<title>spam &amp; eggs</title>" in html


def test_bar_stands_on_the_axis() -> None:
    html = PLANE.bar(0.2, 0.4, 5, "five")
    top, height = (float(re.search(rf' {name}="([\d.]+)"', html)[1]) for name in ("y", "height"))  # type: ignore[index]
    assert top + height == pytest.approx(float(PLANE.at(0, 0)[1]), abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-2, 2, [-2, -1, 0, 1, 2]),
        (0, 315, [0, 100, 200, 300]),
        (1e-7, 2e-7, [1e-7, 1.2e-7, 1.4e-7, 1.6e-7, 1.8e-7, 2e-7]),
    ],
)
def test_ticks_are_round_and_about_five(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_range_has_air_when_values_are_all_the_same() -> None:
    low, high = padded([3.0, 3.0])
    assert low < 3 < high
    assert padded([0.0])[0] < 0


def test_colours_repeat_dashed_when_curves_are_many() -> None:
    assert [colour(place) for place in (0, 5, 6)] == ["run-0", "run-5", "run-0 dashed"]


def test_cells_are_shaded_by_their_share_of_the_row_and_explained() -> None:
    html = heat(["cat", "dog"], [[3, 1], [0, 0]])
    assert 'style="--share: 75.0%" title="cat recognised: 3 of 4">3</td>' in html
    assert 'style="--share: 25.0%" title="cat taken for dog: 1 of 4">1</td>' in html
    assert 'style="--share: 0.0%" title="dog taken for cat: 0 of 0"></td>' in html


def test_cells_have_no_figures_when_classes_are_many() -> None:
    html = heat([str(place) for place in range(13)], [[7] * 13] * 13)
    assert ">7</td>" not in html
    assert 'title="0 recognised: 7 of 91"' in html


def test_names_cannot_become_markup() -> None:
    hostile = "<b onclick=x>'\"&"
    figure = PLANE.figure(hostile, PLANE.dot(0, 0, 1, hostile), hostile, legend([(hostile, hostile)]))
    html = figure + heat([hostile, "dog"], [[1, 2], [3, 4]])
    assert "<b onclick" not in html
    assert html.count("&lt;b onclick=x&gt;") == 5 + 5
