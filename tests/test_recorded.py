"""Tables that were measured once on larger hardware are shown with their record, or not at all."""

import json

import pytest

from esparse_lab import tables


def test_a_table_comes_with_the_record_of_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "REFERENCE", tmp_path)
    assert tables.recorded("gemm_h100", "times") is None
    for folder in ("tables", "records"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tables" / "gemm_h100.times.csv").write_text("m,default_ms\n16,\n")
    with pytest.raises(FileNotFoundError):  # figures without a record are not shown
        tables.recorded("gemm_h100", "times")
    (tmp_path / "records" / "gemm_h100.json").write_text(json.dumps({"device": "a card"}))
    frame, record = tables.recorded("gemm_h100", "times")
    assert record == {"device": "a card"}
    assert frame.m.tolist() == [16]
    assert frame.default_ms.isna().all()
