"""The tables of docs/experiments.md, made from the sections themselves.

``python -m runtime.federated.experiment.document docs/experiments.md`` writes them anew, and leaves the
rest of the page as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.federated.experiment.file import Experiment
from runtime.federated.experiment.keys import Key, Table, tables
from runtime.toml_places import At, dotted

BEGIN, END = "<!-- keys: made from the code -->", "<!-- end of keys -->"


def document() -> str:
    """Every table of the file, every form that it has, and every key with its type, default and meaning."""
    seen: set[At] = set()
    parts: list[str] = []
    known = list(tables(Experiment))
    for table in known:
        if table.at not in seen:
            forms = [other for other in known if other.at == table.at]
            parts += _section(table.at, _distinct(forms))
        seen.add(table.at)
    return "\n".join(parts)


def page(text: str) -> str:
    """A page with the tables of now between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{document()}\n{END}{after}"


def _distinct(forms: list[Table]) -> list[Table]:
    """Each form once: a table within several forms of another is found with each of them."""
    return list({form.choice: form for form in forms}.values())


def _section(at: At, forms: list[Table]) -> Iterator[str]:
    yield f"### [{dotted(at)}]\n"
    if len(forms) == 1 and forms[0].choice is None:
        yield f"{forms[0].about}\n"
        yield from _rows(forms[0].keys)
        return
    assert forms[0].choice is not None
    key = forms[0].choice[0]
    yield f"| `{key}` | what it is |\n| --- | --- |"
    for form in forms:
        assert form.choice is not None
        default = " (default)" if form.is_default else ""
        yield f'| `"{form.choice[1]}"`{default} | {form.about} |'
    yield ""
    holders: dict[Key, list[str]] = {}
    for form in forms:
        for one in form.keys:
            holders.setdefault(one, []).append(form.choice[1] if form.choice is not None else "")
    for values in dict.fromkeys(tuple(values) for values in holders.values()):
        every = f"every `{key}`" if len(values) == len(forms) else _either(key, values)
        yield f"With {every}:\n"
        yield from _rows([one for one, found in holders.items() if tuple(found) == values])


def _either(key: str, values: tuple[str, ...]) -> str:
    first, *more = (f'"{value}"' for value in values)
    return " or ".join([f"`{key} = {first}`", *(f"`{value}`" for value in more)])


def _rows(keys: Sequence[Key]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
    for key in keys:
        default = "**required**" if key.default is None else f"`{key.default}`"
        yield f"| `{key.name}` | {key.type} | {default} | {key.meaning} |"
    yield ""


def main() -> None:
    """Write the tables of the page that is named."""
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
