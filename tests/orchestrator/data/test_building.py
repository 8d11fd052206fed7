"""Building edit sets: the rules hold for any triples, and nothing but triples, templates and seed decides on the rows."""

import gzip
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing.datasets import EditFile, NumberedRequest
from editing.errors import InputError
from orchestrator.data import building
from orchestrator.data.building import BuildConfig, build, edits, pools, sources
from orchestrator.data.building.card import Counts
from orchestrator.data.building.templates import PLACE, SHIPPED, load_templates
from tests.support.command_line import Outcome
from tests.support.paths import PUBLIC_DATA, ROOT

Triple = tuple[str, ...]
Ultraedit = Callable[..., Outcome]

PARAREL = PUBLIC_DATA / "pararel"

TEMPLATES = {
    "river": ["Which river is {subject} on?", "On what river does {subject} stand?", "Name the river of {subject}."],
    "mayor": ["Who is the mayor of {subject}?", "Who governs {subject}?"],
    "twin": ["What is the twin town of {subject}?", "Which town is {subject} twinned with?"],
}


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    path = tmp_path / "templates.yaml"
    path.write_text(json.dumps(TEMPLATES))  # which is YAML too
    return path


def some_triples(num: int = 600, seed: int = 1) -> list[Triple]:
    """Triples with facts of several objects, repetitions and other spellings of one name."""
    generator = random.Random(seed)
    triples = []
    for _ in range(num):
        relation = generator.choice(list(TEMPLATES))
        subject = f"Town {generator.randrange(num // 3)}"
        triples.append((subject.upper() if generator.random() < 0.1 else subject, relation, f"{relation} {generator.randrange(30)}"))
    return triples


def write_tsv(path: Path, lines: Iterable[Sequence[str]]) -> Path:
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read_set(folder: Path) -> list[dict[str, str]]:
    parts = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    assert {part.schema for part in parts} == {edits.EDITS}
    return [row for part in parts for row in part.to_pylist()]


def check_rules(made: Sequence[dict[str, str]], triples: Iterable[Triple], wordings: Mapping[str, Sequence[str]]) -> None:
    """The rules of the set, worked out anew from the triples."""
    true: dict[tuple[str, str], set[str]] = defaultdict(set)
    objects: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    types: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    questions: dict[str, tuple[str, str]] = {}
    for subject, relation, object_, *kind in triples:
        true[subject.casefold(), relation].add(object_.casefold())
        objects[relation, *(kind or [None])].add(object_.casefold())
        types[relation, object_.casefold()].update(kind or [None])
        questions |= {text.replace(PLACE, subject).casefold(): (subject.casefold(), relation) for text in wordings[relation]}
    edited = {questions[edit["prompt"].casefold()] for edit in made}
    assert len(edited) == len(made)
    for edit in made:
        fact = questions[edit["prompt"].casefold()]
        subject, relation = fact
        assert (subject, relation) == (edit["subject"].casefold(), edit["relation"])
        assert edit["ground_truth"].casefold() in true[fact]
        assert edit["ans"].casefold() not in {*true[fact], subject}
        assert any(edit["ans"].casefold() in objects[relation, kind] for kind in types[relation, edit["ground_truth"].casefold()])
        assert questions[edit["rephrase_prompt"].casefold()] == fact
        assert edit["rephrase_prompt"] != edit["prompt"]
        probe = questions[edit["loc"].casefold()]
        assert probe[0] != subject
        assert probe[1] != relation
        assert probe not in edited
        assert true[probe] == {edit["loc_ans"].casefold()}


def test_the_rules_hold(tmp_path: Path, templates: Path) -> None:
    triples = some_triples()
    counts = build(BuildConfig(triples=(write_tsv(tmp_path / "t.tsv", triples),), templates=templates, output=tmp_path / "out"))
    made = read_set(tmp_path / "out")
    check_rules(made, triples, TEMPLATES)
    facts = {(subject.casefold(), relation) for subject, relation, _ in triples}
    assert len(made) == counts.total("edit") > 300
    assert counts.total("edit") + counts.total("probe") == len(facts)
    assert counts.total("duplicate") == len(triples) - len({tuple(name.casefold() for name in triple) for triple in triples}) > 0


_NAMES = st.text("aAbß é{}\t|", min_size=1, max_size=2)
_TRIPLES = st.tuples(_NAMES, st.sampled_from([*TEMPLATES, "unknown"]), _NAMES, st.sampled_from(["x", "y"]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(_NAMES, st.sampled_from([*TEMPLATES, "unknown"]), _NAMES, st.sampled_from(["x", "y"])), min_size=5, max_size=60),
    st.integers(0, 9),
)
def test_the_rules_hold_for_any_triples(triples: list[Triple], seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "templates.yaml").write_text(json.dumps(TEMPLATES))
        path = folder / "t.jsonl"
        path.write_text("\n".join(json.dumps(dict(zip(sources._COLUMNS, triple, strict=True))) for triple in triples))
        config = BuildConfig(triples=(path,), templates=folder / "templates.yaml", output=folder / "out", seed=seed, probe_share=0.4)
        try:
            counts = build(config)
        except InputError as error:
            if f"no edit comes of {len(triples)} triples; " not in str(error):
                raise
            return
        usable = [(" ".join(s.split()), r, " ".join(o.split()), t) for s, r, o, t in triples if s.strip() and o.strip() and r in TEMPLATES]
        check_rules(read_set(folder / "out"), usable, TEMPLATES)
        assert counts.total("triple") == len(triples)


def test_rows_do_not_depend_on_processes_files_or_order(tmp_path: Path, templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triples = some_triples()
    monkeypatch.setattr(building, "_TRIPLES_IN_PART", 200)
    config = {"templates": templates, "seed": 3}
    build(BuildConfig(triples=(write_tsv(tmp_path / "t.tsv", triples),), output=tmp_path / "one", workers=1, **config))
    expected = read_set(tmp_path / "one")
    assert len(list((tmp_path / "one").glob("*.parquet"))) == 4
    check_rules(expected, triples, TEMPLATES)

    shuffled = random.Random(5).sample(triples, len(triples))
    columns = dict(zip(sources._COLUMNS, zip(*shuffled[:200], strict=True), strict=False))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=30)
    plain = write_tsv(tmp_path / "b.tsv", [("subject", "relation", "object"), *shuffled[200:400]])
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c").mkdir()
    records = [dict(zip(sources._COLUMNS, triple, strict=False)) for triple in shuffled[400:]]
    (tmp_path / "c" / "0.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    monkeypatch.setattr(sources, "_STRETCH_BYTES", 1000)
    files = (tmp_path / "a.parquet", tmp_path / "b.tsv.gz", tmp_path / "c")
    build(BuildConfig(triples=files, output=tmp_path / "two", workers=2, **config))
    assert read_set(tmp_path / "two") == expected

    build(BuildConfig(triples=files, output=tmp_path / "other", **{**config, "seed": 4}))
    assert read_set(tmp_path / "other") != expected


@pytest.mark.parametrize("size", range(1, 30))
def test_stretches_hold_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = tmp_path / "lines"
    lines = [b"a" * (n % 7) for n in range(40)]
    path.write_bytes(b"\n".join(lines))
    monkeypatch.setattr(sources, "_STRETCH_BYTES", size)
    found = []
    for stretch in sources.stretches(sources.find_files([path])):
        read = list(stretch.lines())
        if read:
            assert stretch.lines_before == len(found)
        found += read
    assert found == lines


@pytest.mark.slow
def test_a_cluster_gives_the_same_rows(tmp_path: Path, templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_TRIPLES_IN_PART", 200)
    monkeypatch.setattr(building, "_BUCKET_BYTES", 5000)
    monkeypatch.setattr(sources, "_STRETCH_BYTES", 2000)
    names = sorted({name for subject, _, object_ in some_triples() for name in (subject, object_)})
    ids = {name: f"Q{number}" for number, name in enumerate(names)}
    write_tsv(tmp_path / "t.txt", [(ids[s], r, ids[o]) for s, r, o in some_triples()])
    write_tsv(tmp_path / "a.txt", [(id, name, f"also {name}") for name, id in ids.items()][5:])
    config = {"triples": (tmp_path / "t.txt",), "aliases": (tmp_path / "a.txt",), "templates": templates}
    here = build(BuildConfig(output=tmp_path / "here", **config))
    there = build(BuildConfig(output=tmp_path / "there", ray_address="local", workers=2, **config))
    assert [p.name for p in sorted((tmp_path / "here").iterdir())] == [p.name for p in sorted((tmp_path / "there").iterdir())]
    assert all(path.read_bytes() == (tmp_path / "there" / path.name).read_bytes() for path in (tmp_path / "here").iterdir())
    assert here.set_aside() == there.set_aside()
    assert here.total("no name") > 0
    with pytest.raises(InputError, match=r"aliases: Q\d+ has no name; add it, or build without --strict"):
        build(BuildConfig(output=tmp_path / "strict", ray_address="local", strict=True, workers=2, **config))
    assert not (tmp_path / "strict").exists()


def test_wikidata5m_with_its_aliases(tmp_path: Path) -> None:
    """Ids become labels; no target is another name of what is true."""
    towns, countries = [f"Q{n}" for n in range(100, 160)], [f"Q{n}" for n in range(1, 7)]
    triples = [(town, "P17", countries[n % 6]) for n, town in enumerate(towns)] + [(town, "P131", towns[n - 1]) for n, town in enumerate(towns)]
    names = [(id, f"Country {id}", f"Realm {id}") for id in countries] + [(id, f"Town {id}") for id in towns[1:]]
    names[0] = ("Q1", "Country Q1", "country q2", "Country Q3", "Country Q4", "Country Q5")
    write_tsv(tmp_path / "triples.txt", triples)
    write_tsv(tmp_path / "entity.txt", [*names, ("Q1", "Zz")])
    write_tsv(tmp_path / "relation.txt", [("P17", "country"), ("P131", "located in the administrative territorial entity")])
    (tmp_path / "by_label.yaml").write_text(
        "country: ['Where is {subject}?', 'Whose is {subject}?']\nP131: ['What is {subject} in?', 'Name what {subject} is in.']"
    )
    aliases = (tmp_path / "entity.txt", tmp_path / "relation.txt")
    counts = build(BuildConfig(triples=(tmp_path / "triples.txt",), aliases=aliases, templates=tmp_path / "by_label.yaml", output=tmp_path / "out"))
    made = read_set(tmp_path / "out")
    assert {edit["relation"] for edit in made} == {"country", "P131"}
    assert all(" Q" in edit["subject"] and edit["subject"].startswith("Town") for edit in made)
    of_first = [edit["ans"] for edit in made if edit["ground_truth"] == "Country Q1"]
    assert of_first
    assert set(of_first) == {"Country Q6"}
    assert counts.total("no name") == 3  # the first town's country and area, and the one that lies in it
    assert counts.total("entity named twice") == 1


def test_a_target_has_the_type_of_the_true_object(tmp_path: Path, templates: Path) -> None:
    triples = [(f"Town {n}", relation, f"{kind} {n % 7}", kind) for n in range(80) for relation, kind in [("river", "ab"[n % 2]), ("mayor", "man")]]
    build(BuildConfig(triples=(write_tsv(tmp_path / "t.tsv", triples),), templates=templates, output=tmp_path / "out"))
    made = read_set(tmp_path / "out")
    assert {edit["ground_truth"][0] for edit in made} == {"a", "b", "m"}
    assert all(edit["ans"][0] == edit["ground_truth"][0] for edit in made)


def test_samples_of_parts_merge_to_the_sample_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "POOL_SIZE", 20)
    rows = [sources.Row("s", "r", name) for n in range(500) for name in (f"name {n}", f"NAME {n}")]
    random.Random(1).shuffle(rows)
    whole = pools.Pools(0)
    for row in rows:
        whole.add(row)
    merged = pools.Pools(0)
    for start in (700, 0, 300):
        for row in pools.sample_objects(rows[start : start + 400], seed=0):
            if row.note is None:
                merged.add(row)
    assert merged.all() == whole.all()
    assert len(whole.objects("r", None)) == 20
    assert all(name.startswith("NAME") for name in whole.objects("r", None))


def test_the_set_is_read_as_ultraeditbench(tmp_path: Path, templates: Path) -> None:
    build(BuildConfig(triples=(write_tsv(tmp_path / "t.tsv", some_triples()),), templates=templates, output=tmp_path / "out"))
    file = EditFile(tmp_path / "out")
    assert file.format.name == "ultraeditbench"
    requests = [record.request for record in file if isinstance(record, NumberedRequest)]
    made = read_set(tmp_path / "out")
    assert [(r.prompt, r.target, r.rephrase, r.locality_prompt, r.locality_answer, r.subject) for r in requests] == [
        tuple(edit[name] for name in ("prompt", "ans", "rephrase_prompt", "loc", "loc_ans", "subject")) for edit in made
    ]


def test_the_data_card_says_what_was_counted(tmp_path: Path, templates: Path) -> None:
    triples = [*some_triples(), ("Town 1", "moon", "none"), ("Town 2",)]
    counts = build(BuildConfig(triples=(write_tsv(tmp_path / "t.tsv", triples),), templates=templates, output=tmp_path / "out", seed=7))
    card = (tmp_path / "out" / "README.md").read_text()
    made = read_set(tmp_path / "out")
    assert card.startswith(f"# {len(made)} edits\n")
    for relation in TEMPLATES:
        of = sum(edit["relation"] == relation for edit in made)
        assert f"| {relation} | {relation} | {of} | {counts.total('probe', relation)} | 0 | 0 |" in card
    assert "from 602 triples, with seed 7" in card
    assert "| triples of a relation without a template | 1 | t.tsv: line 601: relation 'moon' has no template |" in card
    assert "| triples that are none | 1 | t.tsv: line 602: expected subject, relation and object" in card
    digest = hashlib.sha256((tmp_path / "t.tsv").read_bytes()).hexdigest()
    assert f"| t.tsv | {(tmp_path / 't.tsv').stat().st_size:,} | {digest} |" in card
    assert str(tmp_path) not in card


GOOD_LINES = [b"Town %d\triver\tRiver %d" % (n, n % 5) for n in range(40)] + [b"Town %d\tmayor\tMayor %d" % (n, n % 5) for n in range(40)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"Town\triver", "found 2 of them"),
        (b"Town\triver\tRhine\tstream\tmore", "found 5 of them"),
        (b"Town\t \tRhine", "relation: expected a name, found an empty one"),
        (b"Town\t\xff\tRhine", "found 0 of them"),
        (b"Town\triver\t" + b"x" * 2000, "object: expected a name, found 2000 characters"),
        (b"Town\triver\t" + b"x" * 3_000_000 + b"\tto the end", "expected a name, found"),
        (b'{"subject": "Town", "relation": "river"}', "found 2 of them"),
        (b'{"subject": "Town", "relation": "river", "object": ["Rhine"]}', "object: expected a name, found list"),
        (b'{"subject": "Town", "relation": "river", "object": "\\ud800"}', "object: contains a lone surrogate"),
        (b'{"subject": "Town", "relation"', "found 0 of them"),
        (b'{"a":' * 100_000, "found 0 of them"),
        (b"Town\tmoon\tLuna", "relation 'moon' has no template"),
        (b"Town\tonly\tOne", "relation 'only' has fewer than two templates"),
        (b"Town\triver\tQ42", "Q42 is an id; give --aliases"),
    ],
)
def test_a_bad_triple_costs_itself_alone(tmp_path: Path, ultraedit: Ultraedit, line: bytes, words: str) -> None:
    path, templates = tmp_path / "t.tsv", tmp_path / "templates.yaml"
    path.write_bytes(b"\n".join([*GOOD_LINES[:3], b"", line, *GOOD_LINES[3:]]) + b"\n")
    templates.write_text(json.dumps({**TEMPLATES, "only": ["What is the only {subject}?"]}))
    flags = ["data", "build", "--triples", path, "--templates", templates]
    outcome = ultraedit(*flags, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    (said,) = (line for line in outcome.stdout.splitlines() if line.startswith("set aside"))
    assert said.startswith("set aside 1 triples")
    assert "t.tsv: line 5: " in said
    assert words in said
    strict = ultraedit(*flags, "--output", tmp_path / "strict", "--strict")
    assert strict.code == 1
    (error,) = strict.errors
    assert error.startswith(f"error: {path}: line 5: ")
    assert words in error
    assert {p.name for p in tmp_path.iterdir()} == {"t.tsv", "templates.yaml", "out"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("river: ['Which river?', 'On what river is {subject}?']", "relation river: template 'Which river?' lacks {subject}"),
        ("river: 'Which river is {subject} on?'", "relation river: expected a list of templates"),
        ("river: [1, 2]", "relation river: expected a list of templates"),
        ("river: []", "relation river: expected a list of templates"),
        ("- river", "expected a mapping from relations to templates, found list"),
        ("river: [", "is not YAML"),
        ("{}", "holds no template"),
        ("a: ['What is {subject}?', 'x {subject}']\nb: ['what is  {subject}?', 'y {subject}']", "relations a and b share the template"),
    ],
)
def test_bad_templates_are_one_clear_line(tmp_path: Path, ultraedit: Ultraedit, text: str, words: str) -> None:
    templates = tmp_path / "templates.yaml"
    templates.write_text(text)
    path = write_tsv(tmp_path / "t.tsv", some_triples(10))
    outcome = ultraedit("data", "build", "--triples", path, "--templates", templates, "--output", tmp_path / "made" / "out")
    assert (outcome.code, len(outcome.errors), outcome.stdout) == (1, 1, "")
    assert outcome.errors[0].startswith(f"error: {templates}: ")
    assert words in outcome.errors[0]
    assert {p.name for p in tmp_path.iterdir()} == {"t.tsv", "templates.yaml"}


def _damaged_gzip(folder: Path) -> tuple[str, Path]:
    path = folder / "t.tsv.gz"
    path.write_bytes(gzip.compress(b"\n".join(GOOD_LINES))[:-20])
    return "--triples", path


def _no_column(folder: Path) -> tuple[str, Path]:
    pq.write_table(pa.table({"subject": ["a"], "object": ["b"]}), folder / "t.parquet")
    return "--triples", folder / "t.parquet"


def _only_bad(folder: Path) -> tuple[str, Path]:
    return "--triples", write_tsv(folder / "bad.tsv", [("Town", "moon", "Luna")])


def _empty(folder: Path) -> tuple[str, Path]:
    return "--triples", write_tsv(folder / "empty.tsv", [])


def _one_relation(folder: Path) -> tuple[str, Path]:
    return "--triples", write_tsv(folder / "one.tsv", [(f"Town {n}", "river", f"River {n}") for n in range(30)])


def _missing(folder: Path) -> tuple[str, Path]:
    return "--triples", folder / "missing.tsv"


def _aliases(folder: Path) -> tuple[str, Path]:
    return "--aliases", write_tsv(folder / "aliases.txt", [("Q1", "One")])


@pytest.mark.parametrize(
    ("flags_of", "words"),
    [
        (_damaged_gzip, "t.tsv.gz: the gzip file is damaged or cut off"),
        (_no_column, "t.parquet: lacks the column 'relation'; expected subject, relation and object"),
        (
            _only_bad,
            "no edit comes of 1 triples; 1 triples of a relation without a template (one is bad.tsv: line 1: relation 'moon' has no",
        ),
        (_empty, "no edit comes of 0 triples; the files are empty"),
        (_one_relation, "facts beside which no probe of another subject and relation was found (one is Town "),
        (_missing, "missing.tsv' does not exist"),
        (_aliases, "has no name"),
    ],
)
def test_an_input_without_edits_is_one_clear_line(
    tmp_path: Path, templates: Path, ultraedit: Ultraedit, flags_of: Callable[[Path], tuple[str, Path]], words: str
) -> None:
    flag, path = flags_of(tmp_path)
    triples = [] if flag == "--triples" else ["--triples", write_tsv(tmp_path / "t.tsv", some_triples(10))]
    outcome = ultraedit("data", "build", *triples, flag, path, "--templates", templates, "--output", tmp_path / "made" / "out")
    assert outcome.code != 0
    assert len(outcome.errors) == 1
    assert words in outcome.errors[0]
    assert outcome.stdout == ""
    assert not (tmp_path / "made").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, templates: Path, ultraedit: Ultraedit) -> None:
    path = write_tsv(tmp_path / "t.tsv", some_triples(60))
    flags = ["data", "build", "--triples", path, "--templates", templates, "--output", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    outcome = ultraedit(*flags)
    assert outcome.code == 1
    assert outcome.errors == [f"error: output: {tmp_path / 'out'} is there already; choose another folder, or remove it"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out" / "mine").unlink()
    assert ultraedit(*flags).code == 0  # an empty folder is as good as none


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, templates: Path, ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tsv(tmp_path / "t.tsv", some_triples(60))

    def interrupt(folder: Path, *_: object) -> None:
        assert list(folder.parent.glob("*.parquet"))
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_card", interrupt)
    outcome = ultraedit("data", "build", "--triples", path, "--templates", templates, "--output", tmp_path / "made" / "out")
    assert (outcome.code, outcome.errors) == (130, ["error: interrupted"])
    assert {p.name for p in tmp_path.iterdir()} == {"t.tsv", "templates.yaml"}


def test_what_came_to_be_there_during_a_build_is_left_alone(
    tmp_path: Path, templates: Path, ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "write_card", lambda *_: (tmp_path / "out").write_text("mine"))
    path = write_tsv(tmp_path / "t.tsv", some_triples(60))
    outcome = ultraedit("data", "build", "--triples", path, "--templates", templates, "--output", tmp_path / "out")
    assert outcome.errors == [f"error: output: {tmp_path / 'out'} is there already; choose another folder, or remove it"]
    assert (tmp_path / "out").read_text() == "mine"


def test_what_a_killed_build_left_goes_away_and_a_living_one_is_not_disturbed(tmp_path: Path, templates: Path, ultraedit: Ultraedit) -> None:
    path = write_tsv(tmp_path / "t.tsv", some_triples(60))
    flags = ["data", "build", "--triples", path, "--templates", templates, "--output", tmp_path / "out"]
    alive = tmp_path / f".out.building-{os.getppid()}@{socket.gethostname()}"
    alive.mkdir()
    assert f"process {os.getppid()}@{socket.gethostname()} is building {tmp_path / 'out'} now" in ultraedit(*flags).errors[0]
    assert alive.exists()
    alive.rmdir()
    dead = tmp_path / f".out.building-{2**22 + 1}@{socket.gethostname()}"
    dead.mkdir()
    (dead / "part-00000.parquet").touch()
    assert ultraedit(*flags).code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"t.tsv", "templates.yaml", "out"}


def test_the_templates_of_the_project() -> None:
    templates = load_templates(SHIPPED)
    assert len(templates.texts) >= 50
    assert all(len(texts) >= 2 for texts in templates.texts.values())
    assert all(text.count(PLACE) == 1 and text.endswith("?") and len(text) < 80 for texts in templates.texts.values() for text in texts)
    assert templates.find("Place of Birth") == "P19"
    assert len({label.casefold() for label in templates.labels.values()}) == len(templates.texts)


def test_the_templates_are_part_of_the_package() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert any(fnmatch(SHIPPED.name, pattern) for pattern in packaged["orchestrator.data.building"])


def test_pararels_patterns_are_templates(tmp_path: Path) -> None:
    patterns = ["[X] lies on the [Y] .", "[Y] is where [X] lies.", "[X] is on [Y]", "[Y] and [Y]", "[X], which is on [Y]."]
    (tmp_path / "P206.jsonl").write_text("\n".join(json.dumps({"pattern": pattern}) for pattern in patterns))
    (tmp_path / "P47.jsonl").write_text('{"pattern": "[X] borders [Y]"}\n{"pattern": "[X] is on [Y]."}')
    assert load_templates(tmp_path).texts == {"P47": ("{subject} borders",), "P206": ("{subject} lies on the", "{subject}, which is on")}


@pytest.mark.skipif(not PARAREL.is_dir(), reason="ParaRel is not here")
@pytest.mark.parametrize("templates", [SHIPPED, PARAREL / "patterns"], ids=["questions", "patterns"])
def test_pararel(tmp_path: Path, templates: Path) -> None:
    counts = build(BuildConfig(triples=(PARAREL / "facts",), templates=templates, output=tmp_path / "out", workers=1))
    made = read_set(tmp_path / "out")
    wordings = load_templates(templates).texts
    facts = []
    for path in sorted((PARAREL / "facts").glob("*.jsonl")):
        records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        facts += [tuple(" ".join(name.split()) for name in (r["sub_label"], path.stem, r["obj_label"])) for r in records]
    check_rules(made, [fact for fact in facts if len(wordings[fact[1]]) > 1], wordings)
    assert len(made) == counts.total("edit") > 10_000
    assert len(counts.relations("edit")) == sum(len(wordings[path.stem]) > 1 for path in (PARAREL / "facts").iterdir())


def test_counts_of_two_parts_add_up() -> None:
    counts = Counts()
    for example, relation, number in [("b", "P1", 2), ("a", "P2", 3), (None, "P1", 4)]:
        counts.add(building.Row(None, relation, example, note="no name", number=number))
    assert (counts.total("no name"), counts.total("no name", "P1")) == (9, 6)
    assert (counts.example("no name"), counts.relations("no name")) == ("a", ["P1", "P2"])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_triples(tmp_path: Path) -> None:
    """Peak resident memory of 200,000 and of 2,000,000 triples with their alias files, in one process."""
    code = (
        "import sys; from pathlib import Path; from orchestrator.data.building import BuildConfig, build; "
        "from editing.memory.budget import peak_bytes; "
        "triples, aliases, output = map(Path, sys.argv[1:]); "
        "before = peak_bytes(); "
        "build(BuildConfig(triples=(triples,), aliases=(aliases,), output=output, workers=1)); "
        "print(before, peak_bytes())"
    )
    growth = {}
    for num in (200_000, 2_000_000):
        files = write_synthetic(tmp_path, num)
        said = subprocess.run([sys.executable, "-c", code, *files, tmp_path / f"out-{num}"], capture_output=True, text=True, cwd=ROOT, check=True)
        before, peak = map(int, said.stdout.split())
        growth[num] = (peak - before) / 2**20
        assert sum(pq.read_metadata(part).num_rows for part in (tmp_path / f"out-{num}").glob("*.parquet")) > num / 2
    assert growth[2_000_000] < 1.25 * growth[200_000], growth
    assert growth[2_000_000] < 300, growth


def write_synthetic(folder: Path, num: int) -> tuple[Path, Path]:
    """Triples between a quarter as many entities, some objects far more frequent than others; and the entities' names."""
    generator, entities = random.Random(1), num // 4
    relations = ["P17", "P19", "P27", "P31", "P106", "P131", "P161", "P50", "P57", "P999"]
    triples = ((f"Q{generator.randrange(entities)}", generator.choice(relations), f"Q{int(entities * generator.random() ** 3)}") for _ in range(num))
    names = ((f"Q{n}", f"entity number {n}", f"the {n}th thing", f"E-{n}") for n in range(entities) if n % 100)
    return write_tsv(folder / f"triples-{num}.txt", triples), write_tsv(folder / f"names-{num}.txt", names)
