"""Names of folders: no name leads out of its folder, none is taken for another, and each can be turned back."""

import unicodedata
from pathlib import Path
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from pipeline.exporters.names import folder_names

HOSTILE = [
    *("..", ".", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\x", "~", "~root", "-rf", "--", " ", " a ", "a.", ".hidden", "..."),
    *(
        "CON",
        "con.txt",
        "nul",
        "COM1",
        "LPT9.jpg",
        "a\0b",
        "a\nb",
        "a\tb",
        "%2E%2E",
        "100%",
        "*",
        "?",
        "<b>",
        "|",
        '"',
        ":",
        "$(id)",
        "`id`",
    ),
    *("\u202ecod.exe", "a\u200bb", "\ufeffx", "🙂", "Zoë", "李小龙", "O'Brien", "Jean-Luc (2) & Co.", "x" * 1024, "李" * 341, "%" * 300),
]
_SAFE = set('/\\:*?"<>|\0~$`!#;{}[]^')


def is_safe(name: str) -> bool:
    """A single name that every file system takes, and no shell or browser reads as more."""
    return (
        0 < len(name.encode()) <= 255
        and not set(name) & (_SAFE - {"~"})
        and name not in {".", ".."}
        and name[0] not in " .-~"
        and name[-1] not in " ."
        and not any(unicodedata.category(one)[0] in "CZ" and one != " " for one in name)
        and name.split(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
    )


def test_hostile_names_become_safe_folders_that_can_be_turned_back(tmp_path: Path) -> None:
    names = folder_names(HOSTILE)
    assert [name for name in names if not is_safe(name)] == []
    for identity, name in zip(HOSTILE, names, strict=True):
        (tmp_path / name).mkdir()
        if "~" not in name:
            assert unquote(name) == identity
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    plain = ["Zoë", "李小龙", "O'Brien", "a"]
    assert folder_names(plain) == plain
    assert [len(name.encode()) <= 255 and "~" in name for name in names[-3:]] == [True] * 3


def test_names_that_some_file_systems_take_for_one_are_told_apart() -> None:
    alike = ["Ada", "ADA", "ada", "ﬁn", "fin", "Bob", "Straße", "STRASSE"]
    names = folder_names(alike)
    keys = {unicodedata.normalize("NFKC", name).casefold() for name in names}
    assert len(keys) == len(alike) and names[5] == "Bob" and all("~" in name for name in names if name != "Bob")
    assert folder_names(["Ada", "Bob"]) == ["Ada", "Bob"], "nothing is added where nothing is alike"
    assert len(set(folder_names(["x" * 1000, "x" * 1001, "x" * 200]))) == 3


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300), unique=True, max_size=8))
def test_any_names(identities: list[str]) -> None:
    names = folder_names(identities)
    assert len({name.casefold() for name in names}) == len(identities)
    for identity, name in zip(identities, names, strict=True):
        assert is_safe(name) and ("~" in name or unquote(name) == identity)
