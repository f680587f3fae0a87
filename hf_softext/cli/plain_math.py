"""Formulas of docstrings, which are LaTeX, as plain text for a terminal."""

import re
import unicodedata

_GREEK = [
    *("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "lambda", "mu", "nu", "pi"),
    *("rho", "sigma", "tau", "phi", "psi"),
]
_SYMBOLS = {
    **{
        name: unicodedata.lookup(f"GREEK SMALL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
        for name in _GREEK
    },
    **{
        name: unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper()}")
        for name in ("Delta", "Phi", "Sigma")
    },
    "approx": "≈",
    "cdot": "·",
    "cdots": "...",
    "dots": "...",
    "ell": "l",
    "ge": "≥",
    "in": "∈",
    "infty": "∞",
    "ldots": "...",
    "le": "≤",
    "leftarrow": "←",
    "lVert": "‖",
    "mid": "|",
    "ne": "≠",
    "notin": "∉",
    "odot": "⊙",
    "prod": "∏",
    "propto": "∝",
    "qquad": "  ",
    "quad": "  ",
    "rVert": "‖",
    "sim": "~",
    "sum": "∑",
    "times": unicodedata.lookup("MULTIPLICATION SIGN"),
    "to": "→",
    "top": "T",
    "Vert": "‖",
    "vert": "|",
}
# they only set the size of what follows, or nothing
_SILENT = r"\\(?:[bB]igg?[lrm]?|left|right|displaystyle)(?![a-zA-Z])"
_WORDS = r"\\(?:text|mathrm|mathbf|mathbb|operatorname)\s*\{([^{}]*)\}"
_ARGUMENT = r"\s*(\{[^{}]*\}|[A-Za-z0-9]|\\[a-zA-Z]+)"


def plain_math(text: str) -> str:
    """A docstring with every `$...$` and `$$...$$` in it as plain text.

    Fractions become a/b, powers and indices stay x^2 and x_i, Greek letters and relations their
    characters. Lines stay where they are.
    """
    text = re.sub(r"\$\$(.+?)\$\$", lambda found: _plain(found[1]), text, flags=re.DOTALL)
    # a variable of the shell stands in backticks
    return re.sub(r"(?<!`)\$([^$`]+)\$", lambda found: _plain(found[1]), text)


def _plain(math: str) -> str:
    math = re.sub(_SILENT, "", math)
    for name, sign in ((r"\begin{cases}", "["), (r"\end{cases}", "]"), (r"\\", ";")):
        math = math.replace(name, sign)
    math = re.sub(r"\\[,;!: ]", " ", math)
    math = re.sub(r"\s*&\s*(\\text\{else\})?", lambda f: " else" if f[1] else " if ", math)
    before = ""
    # from the innermost braces outwards
    while math != before:
        before = math
        math = re.sub(_WORDS, lambda f: _apart(f) + f[1], math)
        math = re.sub(r"\\sqrt" + _ARGUMENT, lambda f: f"sqrt({_bare(f[1])})", math)
        math = re.sub(
            r"\\[td]?frac" + _ARGUMENT + _ARGUMENT,
            _fraction,
            math,
        )
        math = re.sub(r"([_^])(\{[^{}]*\})", lambda f: f[1] + _grouped(f[2]), math)
        if math == before:
            math = re.sub(r"\{([^{}]*)\}", r"\1", math)
    math = re.sub(r"\\(?:bar|hat|tilde)\s*", "mean ", math)
    math = re.sub(r"\\([a-zA-Z]+)[ ]*", _named, math)
    math = re.sub(r"(?<=[a-z])  (?=[a-z])", " ", math)
    return re.sub(r"(?<=\S) +(?=[)\],.;]|\n|$)", "", math).strip(" ")


def _bare(argument: str) -> str:
    return argument[1:-1] if argument.startswith("{") else argument


def _grouped(argument: str) -> str:
    """An argument in parentheses, where it is more than a word."""
    inner = _bare(argument).strip()
    return inner if re.fullmatch(r"\\?[A-Za-z]+|[\d.]+|[+-]", inner) else f"({inner})"


def _fraction(found: re.Match[str]) -> str:
    """a/b, in parentheses behind a function."""
    before = re.search(r"\\([a-zA-Z]+)$", found.string[: found.start()])
    whole = f"{_grouped(found[1])}/{_grouped(found[2])}"
    function = before is not None and before[1] not in _SYMBOLS
    return f" ({whole})" if function else f"{_apart(found)}{whole} "


def _apart(found: re.Match[str]) -> str:
    """A space where what is put in would become part of the command before it."""
    return " " if re.search(r"\\[a-zA-Z]+$", found.string[: found.start()]) else ""


def _named(found: re.Match[str]) -> str:
    """A symbol as its character; a function as its name, apart from the word behind it."""
    name, after = found[1], found.string[found.end() : found.end() + 1]
    space = " " if found[0].endswith(" ") and name != "lVert" else ""
    if name in _SYMBOLS:
        return _SYMBOLS[name] + space
    apart = " " if after.isalnum() or after == "\\" else space
    before = found.string[found.start() - 1 : found.start()]
    return (" " if before.isalnum() else "") + name + apart
