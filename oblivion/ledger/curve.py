"""Which 32 bytes are a public key of Ed25519 that an honest key pair can have (RFC 8032, sections 5.1.3 and 5.1.5).

A library takes more: points of low order, for which signatures can be made without a private key, and second spellings
of a point. An honest key is the private scalar times the base point, and so lies in the group of prime order.
"""

from __future__ import annotations

KEY_BYTES = 32
_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)
"""A square root of -1."""
_Point = tuple[int, int, int, int]
_IDENTITY: _Point = (0, 1, 1, 0)


def key_fault(key: bytes) -> str | None:
    """What is wrong with a public key; None where it can be an honest one.

    Parameters
    ----------
    key : bytes
        The raw key.
    """
    if len(key) != KEY_BYTES:
        return f"it has {len(key)} bytes; an Ed25519 public key has {KEY_BYTES}"
    number = int.from_bytes(key, "little")
    y, sign = number & (2**255 - 1), number >> 255
    if y >= _P:
        return "it is a second spelling of a point"
    x = _x_of(y, sign)
    if x is None:
        return "it is no point of the curve"
    point = (x, y, 1, x * y % _P)
    if _is_identity(_times(8, point)):
        return "it is a point of low order, for which anybody can sign"
    if not _is_identity(_times(_L, point)):
        return "it is no multiple of the base point, as every public key is"
    return None


def _x_of(y: int, sign: int) -> int | None:
    """The x of a point: x^2 = (y^2 - 1) / (d y^2 + 1)."""
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if (v * x * x + u) % _P == 0:
        x = x * _ROOT % _P
    if (v * x * x - u) % _P or (x == 0 and sign):
        return None
    return x if x & 1 == sign else _P - x


def _add(p: _Point, q: _Point) -> _Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _times(scalar: int, point: _Point) -> _Point:
    result = _IDENTITY
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point, scalar = _add(point, point), scalar >> 1
    return result


def _is_identity(point: _Point) -> bool:
    return point[0] % _P == 0 and (point[1] - point[2]) % _P == 0
