"""The dims grammar: what is read, and what each mistake is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensortap.dims import Dimension, DimsError, Modifier, parse_dims


def test_every_form_is_read() -> None:
    dims = parse_dims("b s[cp:zigzag, sp] (heads * head_dim)[attn_tp] 1 e[ep:partial] # tp:replicated dp:=attn_dp")
    assert dims.dimensions == (
        Dimension(("b",)),
        Dimension(("s",), (Modifier("cp", "zigzag"), Modifier("sp"))),
        Dimension(("heads", "head_dim"), (Modifier("attn_tp"),)),
        Dimension(("1",)),
        Dimension(("e",), (Modifier("ep", partial=True),)),
    )
    assert dims.replicated == {"tp"}
    assert dims.data_parallel_axis == "attn_dp"
    assert dims.axes == {"cp", "sp", "attn_tp", "ep", "tp", "attn_dp"}


@pytest.mark.parametrize(
    ("written", "modifier"),
    [
        ("h[tp]", Modifier("tp")),
        ("h[tp:sharded]", Modifier("tp")),
        ("h[tp:natural]", Modifier("tp")),
        ("s[cp:zigzag+partial]", Modifier("cp", "zigzag", True)),
        ("h[my_axis:partial]", Modifier("my_axis", partial=True)),
    ],
)
def test_modifiers(written: str, modifier: Modifier) -> None:
    assert parse_dims(written).dimensions[0].modifiers == (modifier,)


@pytest.mark.parametrize(
    ("written", "quoted"),
    [
        ("", "name no dimension"),
        ("#", "name no dimension"),
        ("# tp:both", "'tp:both'"),
        ("t h h", "'h' more than once"),
        ("t (h*d) d", "'d' more than once"),
        ("t h[tp,tp]", "'tp' more than once"),
        ("t h[tp # x", "bracket open"),
        ("t h]", "not open"),
        ("t 2h", "'2h'"),
        ("t h[]", "''"),
        ("t h[tp:half]", "'half'"),
        ("s[cp:zigzag+natural]", "more than one ordering"),
        ("h[tp:partial+partial]", "more than once"),
        ("t (h)", "at least two"),
        ("t (h*)", "''"),
        ("t 1[tp]", "squeezed"),
        ("t h # tp:sharded", "'tp:sharded'"),
        ("t h # tp:replicated tp:replicated", "more than once"),
        ("t h # dp:=a dp:=b", "more than once"),
        ("t h # dp:=", "'dp:='"),
        ("t h[tp] # tp:replicated", "both split and replicated"),
    ],
)
def test_mistakes_are_quoted(written: str, quoted: str) -> None:
    with pytest.raises(DimsError) as caught:
        parse_dims(written)
    assert quoted in str(caught.value)
    assert repr(written) in str(caught.value)


def test_too_few_names_and_a_wrong_one() -> None:
    with pytest.raises(DimsError, match=r"name 2 dimensions, but the tensor has 3: shape \[4, 2, 8\]"):
        parse_dims("t h").check_shape((4, 2, 8))
    with pytest.raises(DimsError, match="dimension 1 as 1, but it has length 2"):
        parse_dims("t 1").check_shape((4, 2))


def test_an_unknown_axis_is_answered_with_the_nearest() -> None:
    with pytest.raises(DimsError, match=r"unknown axis 'attn_tpp' .* did you mean attn_tp"):
        parse_dims("t h[attn_tpp]").check_axes({"attn_tp", "tp"})
    parse_dims("t h[my_axis]").check_axes({"my_axis"})
    parse_dims("t h[moe_ep]").check_axes(set())


@pytest.mark.parametrize(
    ("written", "positions"),
    [("t h", (0,)), ("b s h", (0, 1)), ("s b h", (1, 0)), ("1 s h", (1,)), ("h d", ()), ("b h", ())],
)
def test_token_dimensions(written: str, positions: tuple[int, ...]) -> None:
    assert parse_dims(written).token_dimensions == positions


@given(st.text(alphabet="tbsh1 []()*:,#=+_adp\n", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        dims = parse_dims(text)
    except DimsError:
        return
    assert dims.dimensions
