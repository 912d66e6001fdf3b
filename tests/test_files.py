"""Files and folders that are whole or not there at all."""

from pathlib import Path

import pytest

from tripletkd.files import whole


def test_an_earlier_folder_survives_a_failed_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "file").write_text("earlier")
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name == ".results.partial":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"), whole(folder) as beside:
        beside.mkdir()
    assert [path.read_text() for path in tmp_path.rglob("file")] == ["earlier"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_left_aside_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    aside = tmp_path / ".results.earlier.partial"
    aside.mkdir()
    (aside / "file").write_text("earlier")
    with pytest.raises(OSError, match="No space left"), whole(tmp_path / "results"):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "results" / "file").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
