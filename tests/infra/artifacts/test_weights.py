"""Headers of safetensors files, sound and broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from infra.artifacts.manifest import ArtifactError
from infra.artifacts.weights import read_header, refuse_not_finite


def write(path: Path, header: object, data: bytes) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_it_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.zeros((4,), np.float16)}
    save_file(arrays, str(tmp_path / "x"), metadata={"format": "np"})
    header = read_header(tmp_path / "x")
    assert {name: (t.dtype, t.shape) for name, t in header.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (4,)),
    }
    data = (tmp_path / "x").read_bytes()
    assert data[header["a"].start : header["a"].end] == arrays["a"].tobytes()


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"shape": [2], "data_offsets": [0, 8]}},
        {"a": [1]},
        [1, 2],
        {},
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        },
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(ArtifactError):
        read_header(write(tmp_path / "x", header, bytes(8)))


@given(st.binary(max_size=200))
def test_rubbish_is_refused_not_crashed_on(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except ArtifactError:
        return
    assert header == {}, "only an empty file of tensors is that short"


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match="header length"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(
    tmp_path: Path, kind: type[np.floating], value: float
) -> None:
    array = np.full((3, 3), np.finfo(kind).max, kind)
    save_file({"a": array}, str(tmp_path / "x"))
    refuse_not_finite(tmp_path / "x", read_header(tmp_path / "x"))
    array[1, 1] = value
    save_file({"a": array}, str(tmp_path / "x"))
    with pytest.raises(ArtifactError, match="tensor a"):
        refuse_not_finite(tmp_path / "x", read_header(tmp_path / "x"))
