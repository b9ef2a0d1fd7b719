"""Networks beside their papers' figures: what agrees, and what has to be explained."""

import pytest
import torch
from toys import small_network

from helpers.table import Table
from helpers.variants import Variant, Variants, agrees, counted


def toy(name="toy", **given):
    return Variant(name, small_network, (3, 8, 10), **given)


@pytest.mark.parametrize(
    ("counted", "figure", "equal"),
    [(138_357_544, "138 M", True), (769_162, "0.8 M", True), (3_664_000_000, "3.6 G", False),
     (9_109_994, "9.2 M", False), (994e6, "1.0 G", True)],
)  # fmt: skip
def test_a_figure_agrees_when_it_is_the_count_rounded(counted, figure, equal):
    assert agrees(counted, figure) == equal


@pytest.mark.parametrize("figure", ["138", "138M", "138 B"])
def test_a_figure_without_its_unit_is_named(figure):
    with pytest.raises(ValueError, match="is no figure"):
        agrees(1, figure)


def test_the_counts_are_those_of_the_network():
    found = toy(meta=False).counts
    parameters = sum(parameter.numel() for parameter in small_network().parameters())
    assert found == {"parameters": parameters, "multiply-adds": 8 * 27 * 80 + 16, "receptive field": 3}
    assert toy().counts == found and toy(pixel=None).counts["receptive field"] is None


def test_a_figure_that_contradicts_the_count_needs_a_remark():
    right = f"{toy().counts['parameters'] / 1000:.2f} k"
    wrong = "0.9 k"
    assert not list(Variants("01_toy", "", [toy(parameters=right), toy("none")]).problems())
    (problem,) = Variants("01_toy", "", [toy(parameters=wrong)]).problems()
    assert "01_toy: toy has" in problem and wrong in problem
    (problem,) = Variants("01_toy", "", [toy(macs="1 M")]).problems()
    assert "1 M" in problem
    assert not list(Variants("01_toy", "", [toy(parameters=wrong, remark="a misprint")]).problems())


def test_two_networks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two networks of the name 'toy'"):
        Variants("01_toy", "", [toy(), toy()])
    wide = Variant("toy", small_network, (3, 8, 12))
    assert Variants("01_toy", "", [wide, Variant("toy", small_network, (3, 9, 12))], sized=True)


def test_the_table_has_columns_only_for_figures_that_a_paper_prints():
    rows = list(counted(Variants("01_toy", "", [toy(), toy("other", parameters="1 k")], ("Table 2", "Table 3"))))
    assert list(rows[0]) == ["network", "parameters", "Table 2: parameters", "multiply-adds"]
    assert [row["Table 2: parameters"] for row in rows] == ["", "1 k"]
    assert "Table 2: parameters" in repr(Table(rows))


def test_a_network_is_built_without_numbers_where_it_can_be():
    assert next(toy().make().parameters()).is_meta
    assert next(toy(meta=False).make().parameters()).device == torch.device("cpu")
