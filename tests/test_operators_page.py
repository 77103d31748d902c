"""The page of operators: it says something of each that the front end reads, and of no other."""

import pytest

from moevit.cli import operators_page
from moevit.compiler.frontend.trace import HANDLERS


def test_the_page_has_every_operator_once() -> None:
    page = operators_page.operators_page()
    for op in HANDLERS:
        assert page.count(f"\n| {op} | ") == 1, op


def test_an_operator_without_a_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HANDLERS, "NewOperator", HANDLERS["MatMul"])
    with pytest.raises(ValueError, match="NewOperator"):
        operators_page.operators_page()
