"""The lists of formats are what the commands and the documentation show."""

from pathlib import Path

import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.cli.export import FORMATS
from mouselift_jax.data.readers.calibrations import CALIBRATIONS
from mouselift_jax.data.readers.keypoints import KEYPOINTS
from mouselift_jax.data.readers.registry import table
from mouselift_jax.data.readers.space import POINTS


@pytest.mark.parametrize("formats", [CALIBRATIONS, KEYPOINTS, POINTS])
def test_the_documentation_has_the_table(formats):
    text = Path("docs/data_format.md").read_text()
    assert table(formats) in text, f"put this into docs/data_format.md:\n{table(formats)}"


def test_commands_list_the_formats(capsys):
    with pytest.raises(SystemExit) as done:
        main(["check", "--list-formats"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and all(
        f.name in text for f in (*CALIBRATIONS, *KEYPOINTS, *POINTS)
    )
    with pytest.raises(SystemExit):
        main(["export", "--list-formats"])
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in FORMATS)
