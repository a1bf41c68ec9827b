r"""Formats of JSON Schema that are regular languages, as expressions of the decoded text.

Source: JSON Schema Validation 2020-12, section 7.3, and the RFC beside each. All others are annotations.
``regex`` is no regular language, the international ones need tables without end. ``uri-template`` is not written yet.
Owns: the expressions. Knows nothing about: schemas.
"""

from __future__ import annotations

import functools

from maskd.regular.assertions import whole
from maskd.regular.expression import Expression

__all__ = ["FORMATS", "format_expression"]

_MONTHS = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = rf"(?:\d{{4}}-{_MONTHS}|{_LEAP_YEAR}-02-29)"
_OFFSET = r"(?:[zZ]|[+\-](?:[01]\d|2[0-3]):[0-5]\d)"
_TIME = rf"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?{_OFFSET}"

_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = "[0-9a-fA-F]{1,4}"


def _ipv6() -> str:
    """RFC 4291, section 2.2: eight groups, of which one run may be ``::``, and of which the last two may be IPv4."""
    full = [rf"(?:{_GROUP}:){{7}}{_GROUP}", rf"(?:{_GROUP}:){{6}}{_IPV4}"]
    for before in range(8):
        head = rf"{_GROUP}(?::{_GROUP}){{{before - 1}}}" if before else ""
        room = 7 - before
        tail = rf"(?:{_GROUP}(?::{_GROUP}){{0,{room - 1}}})?" if room else ""
        full.append(f"{head}::{tail}")
        if room >= 2:
            full.append(rf"{head}::(?:{_GROUP}:){{0,{room - 2}}}{_IPV4}")
    return "(?:" + "|".join(full) + ")"


_IPV6 = _ipv6()
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9\\-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_PLAIN_LABEL = (  # does not begin with xn--; without look-ahead, at which llguidance may give up
    r"(?:[a-wyzA-WYZ0-9](?:[a-zA-Z0-9\-]{0,61}[a-zA-Z0-9])?"
    r"|[xX](?:[a-mo-zA-MO-Z0-9]|[a-mo-zA-MO-Z0-9\-][a-zA-Z0-9\-]{0,60}[a-zA-Z0-9])?"
    r"|[xX][nN](?:-?[a-zA-Z0-9](?:[a-zA-Z0-9\-]{0,58}[a-zA-Z0-9])?|[a-zA-Z0-9][a-zA-Z0-9\-]{59}[a-zA-Z0-9])?)"
)
_ATOM = r"[a-zA-Z0-9!#$%&'*+\-/=?^_`{|}~]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_ESCAPED = "%[0-9a-fA-F]{2}"
_PATH_CHAR = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:@]|{_ESCAPED})"
_USER = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:]|{_ESCAPED})*"
_NAME = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=]|{_ESCAPED})*"
_FUTURE = r"v[0-9a-fA-F]+\.[a-zA-Z0-9\-._~!$&'()*+,;=:]+"
_AUTHORITY = rf"(?:{_USER}@)?(?:\[(?:{_IPV6}|{_FUTURE})\]|{_NAME})(?::\d*)?"
_QUERY = rf"(?:\?(?:{_PATH_CHAR}|[/?])*)?(?:#(?:{_PATH_CHAR}|[/?])*)?"
_ROOTED = rf"//{_AUTHORITY}(?:/{_PATH_CHAR}*)*|/(?:{_PATH_CHAR}+(?:/{_PATH_CHAR}*)*)?"
_HIERARCHY = rf"(?:{_ROOTED}|{_PATH_CHAR}+(?:/{_PATH_CHAR}*)*|)"
_FIRST_SEGMENT = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=@]|{_ESCAPED})+"
_RELATIVE = rf"(?:{_ROOTED}|{_FIRST_SEGMENT}(?:/{_PATH_CHAR}*)*|)"
_URI = rf"[a-zA-Z][a-zA-Z0-9+\-.]*:{_HIERARCHY}{_QUERY}"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_CLOCK = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DAYS = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"

FORMATS = {
    "date": _DATE,  # RFC 3339, full-date
    "time": _TIME,  # RFC 3339, full-time; no leap seconds
    "date-time": rf"{_DATE}[tT]{_TIME}",  # RFC 3339
    "duration": rf"P(?:\d+W|{_DAYS}(?:{_CLOCK})?|{_CLOCK})",  # RFC 3339, appendix A
    "email": rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@(?:{_HOST}|\[(?:{_IPV4}|IPv6:{_IPV6})\])",  # RFC 5321, 4.1.2
    # RFC 1123, section 2.1. No label in Punycode: which of those are names is not regular (RFC 5891).
    "hostname": rf"(?=.{{1,253}}$){_PLAIN_LABEL}(?:\.{_PLAIN_LABEL})*",
    "ipv4": _IPV4,  # RFC 2673, section 3.2
    "ipv6": _IPV6,  # RFC 4291, section 2.2
    "uri": _URI,  # RFC 3986
    "uri-reference": rf"(?:{_URI}|{_RELATIVE}{_QUERY})",  # RFC 3986
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",  # RFC 4122
    "json-pointer": _POINTER,  # RFC 6901
    "relative-json-pointer": rf"(?:0|[1-9]\d*)(?:#|{_POINTER})",  # draft-bhutton-relative-json-pointer-00
}
"""Formats that are asserted, as patterns that match the whole text."""


@functools.cache
def format_expression(name: str) -> Expression | None:
    """Returns the texts of the format ``name``; None if it is not among ``FORMATS``."""
    return whole(FORMATS[name]) if name in FORMATS else None
