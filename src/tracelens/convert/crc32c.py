"""CRC-32C (Castagnoli), which TFRecord files carry: many records at once, with NumPy.

A CRC that starts at 0 is not changed by leading zeros, and is linear: records are put into the
rows of a matrix, filled up in front, and a long one into several rows that are joined after.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
_ROW = 512
_MASK_DELTA = 0xA282EAD8


def crc32c(records: Sequence[bytes]) -> list[int]:
    """Return the CRC-32C of each record.

    Examples:
        >>> [hex(c) for c in crc32c([b"123456789", b""])]
        ['0xe3069283', '0x0']
    """
    short = [place for place, record in enumerate(records) if 4 <= len(record) <= _ROW]
    found = [0] * len(records)
    # Records of like length together: a row is as long as the longest of its batch.
    short.sort(key=lambda place: len(records[place]))
    for start in range(0, len(short), 1024):
        batch = short[start : start + 1024]
        width = len(records[batch[-1]])
        rows = np.zeros((len(batch), width), dtype=np.uint8)
        for row, place in enumerate(batch):
            record = records[place]
            rows[row, width - len(record) :] = np.frombuffer(record, dtype=np.uint8)
            rows[row, width - len(record) : width - len(record) + 4] ^= 0xFF
        for place, crc in zip(batch, _raw(rows), strict=True):
            found[place] = int(crc) ^ 0xFFFFFFFF
    for place, record in enumerate(records):
        if len(record) < 4:
            found[place] = of_few(record)
        elif len(record) > _ROW:
            found[place] = _of_long(record)
    return found


def masked(crc: int) -> int:
    """Return a CRC as TFRecord files store it: rotated, and moved by a constant."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _of_long(record: bytes) -> int:
    n_rows = -(-len(record) // _ROW)
    rows = np.zeros(n_rows * _ROW, dtype=np.uint8)
    begin = len(rows) - len(record)
    rows[begin:] = np.frombuffer(record, dtype=np.uint8)
    rows[begin : begin + 4] ^= 0xFF
    crcs = _raw(rows.reshape(n_rows, _ROW))
    shift = _row_shift()
    crc = 0
    for each in crcs.tolist():
        crc = (
            shift[0][crc & 0xFF]
            ^ shift[1][crc >> 8 & 0xFF]
            ^ shift[2][crc >> 16 & 0xFF]
            ^ shift[3][crc >> 24]
            ^ each
        )
    return crc ^ 0xFFFFFFFF


def _raw(rows: NDArray[np.uint8]) -> Words:
    """Return the CRC of each row, begun at 0."""
    table = _table()
    crc = np.zeros(len(rows), dtype=np.uint32)
    for column in np.ascontiguousarray(rows.T):
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    return crc


def of_few(record: bytes) -> int:
    """Return the CRC-32C of a few bytes, byte by byte."""
    table, crc = _numbers(), 0xFFFFFFFF
    for byte in record:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _numbers() -> list[int]:
    return [int(value) for value in _table()]


@cache
def _table() -> Words:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(_POLYNOMIAL), crc >> 1).astype(np.uint32)
    return crc


@cache
def _row_shift() -> list[list[int]]:
    """Return what a row of zeros makes of a CRC, a table for each of its bytes."""
    table = _table()
    bits = (np.uint32(1) << np.arange(32, dtype=np.uint32)).astype(np.uint32)
    for _ in range(_ROW):
        bits = table[bits & 0xFF] ^ (bits >> np.uint32(8))
    tables = []
    for byte in range(4):
        of_byte = np.zeros(256, dtype=np.uint32)
        for bit in range(8):
            has = (np.arange(256) >> bit & 1).astype(bool)
            of_byte[has] ^= bits[8 * byte + bit]
        tables.append([int(value) for value in of_byte])
    return tables
