"""Whatever the command line is connected to, it is readable there, or ends as other tools do."""

import json
import re
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from orchestrator.cli.console import Screen
from orchestrator.cli.run_tables import metrics_table
from orchestrator.cli.streams import plain
from orchestrator.cli.tables import Column, Sheet
from tests.support.paths import PARITY
from tests.support.processes import RUN, in_terminal, shell, ultraedit

READER_GONE = 141
METRICS = json.loads((RUN / "metrics.json").read_text())
SHOWN = ["efficacy", "generalization", "specificity", "locality_retention", "efficacy_generated", "generalization_generated"]


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    path = tmp_path / "法国.jsonl"
    records = [{"prompt": "法国的首都是", "target": "里昂"}, {"prompt": "\x1b[31mThe mayor of Łódź is", "target": "Zoë"}]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


# --- encodings


def test_tables_are_written_escaped_where_the_encoding_is_ascii(chinese: Path) -> None:
    done = ultraedit("data", "inspect", chinese, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert r"prompt  \u6cd5\u56fd\u7684\u9996\u90fd\u662f" in done.stdout
    assert r"\x1b[31mThe mayor of \u0141\xf3d\u017a is" in done.stdout


def test_messages_are_written_escaped_where_the_encoding_is_ascii(chinese: Path) -> None:
    done = ultraedit("show", chinese.with_name("巴黎"), PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr == f"error: {chinese.parent}/\\u5df4\\u9ece: holds no run.json, so it is no finished run\n"


@pytest.mark.parametrize("command", [["edit", "--help"], ["show", RUN]], ids=["help", "show"])
def test_what_the_program_draws_itself_is_ascii_where_the_encoding_is(command: list[object]) -> None:
    done = ultraedit(*command, PYTHONIOENCODING="ascii", COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "Traceback" not in done.stderr


def test_texts_are_written_as_they_are_where_the_encoding_has_them(chinese: Path) -> None:
    done = ultraedit("data", "inspect", chinese, PYTHONIOENCODING="utf-8")
    assert "法国的首都是" in done.stdout
    assert r"\x1b[31mThe mayor of Łódź is" in done.stdout  # a text does not control the terminal


def test_the_c_locale_is_no_obstacle(chinese: Path) -> None:
    done = ultraedit("data", "inspect", chinese, LC_ALL="C", LANG="C")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)


def test_a_file_name_that_is_not_utf_8_can_be_named_in_an_error() -> None:
    done = shell(r"""exec "$@" /nowhere/$'\xff'.jsonl""", "data", "inspect")
    assert done.returncode == 1
    assert done.stderr == "error: /nowhere/\\udcff.jsonl: no such file; expected a file with edits\n"


@pytest.mark.thorough
def test_progress_bars_and_spinners_of_a_run_are_ascii_in_an_ascii_terminal_of_40_columns(tmp_path: Path) -> None:
    tiny = PARITY / "llama-tiny"
    flags = ["--model", tiny / "model", "--edits", tiny / "edits.json", "--limit", 4, "--edits-per-turn", 2, "--tracking-uri", "none"]
    modules = ["--modules", "model.layers.1.mlp.up_proj", "--learning-rate", "1e-3", "--generate", 1]
    code, written = in_terminal("edit", *flags, *modules, "--output", tmp_path / "out", columns=40, PYTHONIOENCODING="ascii")
    assert code == 0, written.decode()
    assert written.isascii()
    assert b"evaluating" in written
    assert b"Traceback" not in written
    assert b"efficacy_generated" in written


def test_plain_text_escapes_what_an_encoding_lacks_and_what_controls_a_terminal() -> None:
    assert plain("Łódź: 10 €…", "ascii") == r"\u0141\xf3d\u017a: 10 \u20ac."
    assert plain("Łódź: 10 €…", "iso8859-15") == r"\u0141ód\u017a: 10 €."
    assert plain("a\x1b]0;b\x07\r\n\t\x9b31m\ud800", "utf-8") == "a\\x1b]0;b\\x07\\x0d\n\t\\x9b31m\\ud800"


# --- pipes and closed streams


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["show", RUN], id="show"),
        pytest.param(["history", RUN, "--edits"], id="history"),
        pytest.param(["diff", RUN, "0", "1"], id="diff"),
        pytest.param(["edit", "--help"], id="help"),
        pytest.param(["--version"], id="version"),
        pytest.param(["data", "inspect", RUN.parent / "edits.jsonl"], id="data inspect"),
        pytest.param(["data", "inspect", RUN.parent / "edits.jsonl", "--json"], id="data inspect as JSON"),
    ],
)
@pytest.mark.parametrize("reader", ["true", "head -c 1 > /dev/null"])
def test_a_closed_pipe_ends_a_command_without_a_word(arguments: list[object], reader: str) -> None:
    done = shell(f'"$@" 2> >(cat >&2) | {reader}; echo "${{PIPESTATUS[0]}}"', *arguments)
    assert int(done.stdout) in (READER_GONE, 0)  # 0 where all of it was written before the reader left
    assert [line for line in done.stderr.splitlines() if not line.startswith("reading")] == []


def test_a_reader_that_never_reads_is_told_from_success() -> None:
    done = shell('sleep 0 | true; "$@" | exec 0<&-; echo "${PIPESTATUS[0]}"', "history", RUN)
    assert int(done.stdout) == READER_GONE


def test_an_error_into_a_closed_pipe_keeps_its_exit_code() -> None:
    done = shell('"$@" 2>&1 | true; echo "${PIPESTATUS[0]}"', "show", "/nowhere")
    assert (int(done.stdout), done.stderr) == (1, "")


@pytest.mark.thorough
def test_a_run_goes_on_when_nobody_reads_its_messages(tmp_path: Path) -> None:
    tiny = PARITY / "llama-tiny"
    flags = ["--model", tiny / "model", "--edits", tiny / "edits.json", "--limit", 4, "--edits-per-turn", 2, "--tracking-uri", "none"]
    modules = ["--modules", "model.layers.1.mlp.up_proj", "--learning-rate", "1e-3", "--no-eval", "--output", tmp_path / "out"]
    done = shell('"$@" 2>&1 >/dev/null | true; echo "${PIPESTATUS[0]}"', "edit", *flags, *modules)
    assert (int(done.stdout), done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["edits"] == 4


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        (">&-", ["show", RUN], 0),
        ("2>&-", ["show", RUN], 0),
        ("<&- >&- 2>&-", ["show", RUN], 0),
        ("2>&-", ["show", "/nowhere"], 1),
        (">&-", ["edit", "--help"], 0),
        (">&- 2>&-", ["data", "inspect", RUN.parent / "edits.jsonl"], 0),
    ],
)
def test_closed_streams_are_like_dev_null(closed: str, arguments: list[object], code: int) -> None:
    done = shell(f'"$@" {closed}', *arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_nothing_is_written_into_a_file_that_got_the_number_of_a_closed_stream(chinese: Path) -> None:
    copy = chinese.with_name("copy.jsonl")
    assert shell('"$@" >&- 2>&-', "data", "convert", chinese, "--output", copy).returncode == 0
    assert [json.loads(line)["target"] for line in copy.read_text(encoding="utf-8").splitlines()] == ["里昂", "Zoë"]


@pytest.mark.parametrize("arguments", [["show", RUN], ["edit", "--help"], ["--version"]], ids=["show", "help", "version"])
def test_a_result_that_cannot_be_written_is_an_error(arguments: list[object]) -> None:
    done = shell('"$@" > /dev/full', *arguments)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


# --- narrow terminals


@pytest.mark.parametrize("columns", [24, 40, 60, 80])
def test_a_finished_run_is_shown_with_every_metric_whole_and_once(columns: int) -> None:
    code, written = in_terminal("show", RUN, columns=columns)
    assert code == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r\n", "\n")
    assert max(len(line) for line in text.splitlines()) <= columns
    words = text[text.index("Metrics") :].split()
    if columns >= 40:  # below, the longest names are broken
        assert [words.count(name) for name in SHOWN] == [1] * len(SHOWN)
    numbers = {f"{METRICS[name]:.3f}" for name in SHOWN}
    assert numbers <= set(words)


def rendered(sheet: Sheet, width: int, encoding: str = "utf-8") -> list[str]:
    file = TextIOWrapper(BytesIO(), encoding=encoding)
    Screen(file=file, width=width).print(sheet)
    file.flush()
    file.seek(0)
    return [line.rstrip() for line in file.read().splitlines()]


@pytest.fixture
def sheet() -> Sheet:
    sheet = Sheet("metric", Column("now", right=True), Column("what it is", text=True), title="Metrics")
    sheet.add("generalization", "0.500", "right answer tokens")
    sheet.add("generalization_generated", "0.250", "rephrased prompts")
    return sheet


def test_columns_stand_side_by_side_where_they_fit(sheet: Sheet) -> None:
    assert rendered(sheet, 60) == [
        "Metrics",
        "metric                      now  what it is",
        "generalization            0.500  right answer tokens",
        "generalization_generated  0.250  rephrased prompts",
    ]


def test_running_text_is_broken_before_anything_else_is(sheet: Sheet) -> None:
    assert rendered(sheet, 49)[2:4] == ["generalization            0.500  right answer", "                                 tokens"]


def test_fields_stand_one_below_another_where_columns_do_not_fit(sheet: Sheet) -> None:
    expected = ["Metrics", "metric      generalization", "now         0.500", "what it is  right answer tokens", ""]
    assert rendered(sheet, 40)[:5] == expected
    assert rendered(sheet, 40)[5:7] == ["metric      generalization_generated", "now         0.250"]


def test_columns_of_numbers_become_rows_where_that_fits_better() -> None:
    sheet = Sheet(*(Column(name, right=True) for name in ("edits", "generalization", "locality retention", "specificity")), title="On the way")
    sheet.add("20", "0.500", "", "1.000")
    sheet.add("40", "0.250", "0.750", "1.000")
    assert rendered(sheet, 60)[1].split() == ["edits", "generalization", "locality", "retention", "specificity"]
    assert rendered(sheet, 36) == [
        "On the way",
        "edits                  20     40",
        "generalization      0.500  0.250",
        "locality retention         0.750",
        "specificity         1.000  1.000",
    ]
    assert rendered(sheet, 24)[1:4] == ["edits           20", "generalization  0.500", "specificity     1.000"]


def test_a_field_that_is_empty_takes_no_line_of_its_own() -> None:
    assert "before" not in "".join(rendered(metrics_table({"efficacy": 0.5}), 30))


def test_text_that_gets_longer_by_escaping_still_fits() -> None:
    sheet = Sheet("id", Column("prompt", text=True))
    sheet.add("1", "法国的首都是里昂还是巴黎")
    lines = rendered(sheet, 30, "ascii")
    assert max(map(len, lines)) <= 30
    assert "".join(lines).replace(" ", "").endswith("idprompt1" + "".join(f"\\u{ord(c):04x}" for c in "法国的首都是里昂还是巴黎"))


def widths() -> Iterator[int]:
    yield from range(16, 90, 3)


@pytest.mark.parametrize("width", widths())
def test_no_line_is_wider_than_the_terminal_and_no_number_is_broken(width: int, sheet: Sheet) -> None:
    lines = rendered(sheet, width)
    assert max(map(len, lines)) <= width
    assert all(number in " ".join(lines).split() for number in ("0.500", "0.250") if width >= 24)
