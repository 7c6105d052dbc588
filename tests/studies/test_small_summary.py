"""The table over all small studies: means, and intervals of differences of equal seeds."""

import json
from pathlib import Path

import pytest

from llava_s2.studies.small_summary import interval, summarize
from llava_s2.studies.study_report import StudyReport


def write_report(folder: Path, study: str, score: str, rows: list[dict[str, object]]) -> None:
    report = StudyReport(folder, study, {"data": "made up"})
    for row in rows:
        report.row(row, dict)
    report.finish(score, "tower")


def test_a_table_and_a_figure_of_all_studies(tmp_path: Path) -> None:
    for seed, (one, two) in enumerate(((1.0, 1.5), (2.0, 3.5), (3.0, 4.0))):
        rows = [
            {"tower": "a/net", "scales": "224²", "test info": one},
            {"tower": "a/net", "scales": "224², 448²", "test info": two},
        ]
        write_report(tmp_path / f"reconstruct-{seed}", "reconstruct", "test info", rows)
    rows = [
        {"tower": "net", "scales": scales, "seed": seed, "RMSE m": value - 0.25 * (scales == "both")}
        for scales in ("one", "both")
        for seed, value in enumerate((0.5, 0.7))
    ]
    write_report(tmp_path / "depth", "depth", "RMSE m", rows)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "report.json").write_text(json.dumps({"study": "probe", "rows": []}))

    lines = summarize(tmp_path).splitlines()
    assert (tmp_path / "summary.md").read_text().splitlines() == lines
    assert (tmp_path / "summary.png").stat().st_size > 1000
    cells = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]}
    less, more = "RMSE m, less is better", "test info, more is better"
    # Differences 0.5, 1.5, 1.0: mean 1, standard deviation 0.5; Student's t of two degrees of freedom: 4.303.
    assert cells == {
        ("`depth`", "net", "one", less, "0.6 ± 0.14 (2)", ""),
        ("`depth`", "net", "both", less, "0.35 ± 0.14 (2)", "-0.25 (-0.25 to -0.25)"),
        ("`reconstruct`", "net", "224²", more, "2 ± 1 (3)", ""),
        ("`reconstruct`", "net", "224², 448²", more, "3 ± 1.3 (3)", "+1 (-0.24 to +2.2)"),
    }


def test_the_interval_is_students() -> None:
    # t of 95 % and four degrees of freedom is 2.776: 2.776 * 1.5811 / 5 ** 0.5 = 1.963.
    assert interval([1, 2, 3, 4, 5]) == "+3 (+1 to +5)"
    assert interval([1.0, 1.1, 1.2, 1.3, 1.4]) == "+1.2 (+1 to +1.4)"
    assert interval([7.0]) == ""


@pytest.mark.parametrize("studies", [0, 1])
def test_nothing_found_is_an_empty_table(tmp_path: Path, studies: int) -> None:
    if studies:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "report.json").write_text("{}")
    assert len(summarize(tmp_path).splitlines()) == 2
