"""Names that break what writes them down carelessly: whatever shows a name must show these as text.

Every export, page and terminal output is tested with all of them: nothing runs, nothing is written outside the folder
given, and the file around the name stays whole.
"""

from __future__ import annotations

MARKUP = (
    "</script><script>alert(1)</script>",
    "<!--<script>alert(1)//",
    "-->",
    "]]><script>alert(1)</script>",
    "<![CDATA[x]]>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "</title></style></textarea><b>",
    '"><iframe srcdoc="<script>alert(1)</script>">',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "&lt;b&gt;&amp;lt;",
    "&#x3c;script&#x3e;",
    "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "url(javascript:alert(1))",
    "expression(alert(1))",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
)
TEMPLATES = ("{{7*7}}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "{0.__class__}", "%s%n%d", "$(id)", "`id`", "; rm -rf x #")
QUOTES = ("\"quoted\" 'twice' `thrice`", "\\", "\\u003c", '"},{"', '";alert(1);//', "*/alert(1)/*", 'key\\\\"')
FORMULAS = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1,1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    '=HYPERLINK("http://x.invalid","y")',
    "\uff1d1+1",
    'a,"b";c',
)
LINES = ("a\nb\rc\td", "a\r\nSet-Cookie: x", "\u2028\u2029", "\x85\x0b\x0c", " lead and trail ", "\u00a0\u3000")
TERMINAL = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m\x9d0;title\x9c",
    "\x07\x08\x7f",
    "a\x08b",
    "[bold red]markup[/bold red]",
)
DIRECTIONS = ("\u202egnp.exe\u202c", "\u200fright\u200eleft", "\u2066isolated\u2069", "\ufeffmark", "zero\u200bwidth")
BROKEN = ("\x00", "a\x00b", "\ud800", "\udfff\ud800", "\udcff", "\ufffe\uffff", "\U000e0041\U000e007f")
PATHS = (
    "../../escaped",
    "..\\..\\escaped",
    "/escaped",
    "C:\\escaped",
    "CON",
    "NUL.txt",
    "%00",
    "%2e%2e%2fescaped",
    "file:///etc/passwd",
    ".",
    "..",
    "~/escaped",
    "x" * 300,
)
LETTERS = (
    "漢字",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
    "Z\u0334\u0321\u0327\u0311\u0300\u0323a\u0336\u0322\u030al\u0335\u0328\u0309g\u0337\u0329\u033do",
    "e\u0301 \u00e9",
    "\u0130\u0131\u1e9e\ufb01",
    "\U0001d56c",
)
KEYS = ("", " ", "__proto__", "constructor", "hasOwnProperty", "toString", "NaN", "null", "-0", "1e999", "undefined")
LONG = "long" * (1 << 18)  # a megabyte

HOSTILE: tuple[str, ...] = (
    MARKUP + TEMPLATES + QUOTES + FORMULAS + LINES + TERMINAL + DIRECTIONS + BROKEN + PATHS + LETTERS + KEYS
)
"""All but the long one, which costs seconds where every name is tried by itself."""
