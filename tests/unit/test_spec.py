"""pipeline.yaml: what a good one becomes, and what is said about a bad one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dropforge.domain.canary import Rules as CanaryRules
from dropforge.domain.datasets import Column
from dropforge.domain.errors import BadSpec
from dropforge.domain.gate import Action, FirstRule, Policy
from dropforge.domain.verdicts import LOWER_IS_BETTER
from dropforge.ports import ColumnRule, TableRules
from dropforge.spec.load import parse, to_canary_rules, to_policy, to_rules
from dropforge.spec.model import COLUMN_TYPES, Dataset, Evaluation, PipelineSpec, Training

LEAST = """\
name: flights
dataset: {format: csv}
training: {command: python train.py}
"""
FULL = """\
name: flights
description: Will it be late?
dataset:
  drop: nyc/flights/
  format: csv
  columns:
    - {name: origin, type: string, nullable: false, allowed: [EWR, JFK, LGA]}
    - {name: distance, type: float, min: 0, max: 10000}
    - {name: tail, pattern: "N[0-9A-Z]+", unique: true}
    - {name: scheduled_at, type: timestamp}
    - {name: late, type: int}
  extra_columns: refuse
  label: late
  event_time: scheduled_at
  min_rows: 10
  max_bytes: 500KB
batching: {quiet_period: 30s, max_wait: 1h, max_files: 10}
training:
  command: [python, train.py, --fast]
  parameters: {max_iter: 200, rate: 1e-3, kind: "010", shuffle: false}
  environment: {OMP_NUM_THREADS: "1"}
  features: [origin, distance]
  seed: 7
  min_rows: 1000
  compute: {target: azureml, timeout: 2d, instance_type: Standard_NC4, instance_count: 2}
evaluation: {metric: log_loss, block: "rows:500", holdout_blocks: 14, slices: [origin], confidence: 0.95}
gate: {min_improvement: 0.001, better: ask, cannot_tell: keep, worse: ask, slice_worse: ask, first: always, ask_timeout: 2h}
deployment: {endpoint: late-flights, enabled: false, timeout: 90s}
budget: {runs_per_day: 3, training_minutes_per_day: 60, cool_down: 30m, max_failures: 2}
alerts:
  - {rule: "flights-*", severity: [Sev0, Sev1], dimensions: {endpoint: late-flights}, action: rollback}
  - {rule: "storage-*", action: pause, until: resolved}
  - {rule: "*", action: notify}
"""


def problems_of(text: str) -> list[dict[str, object]]:
    with pytest.raises(BadSpec) as caught:
        parse(text)
    found = caught.value.about["problems"]
    assert isinstance(found, list)
    assert caught.value.message.count("\n") == len(found) - 1
    return found


def said(text: str) -> str:
    with pytest.raises(BadSpec) as caught:
        parse(text)
    return caught.value.message


def with_section(section: str) -> str:
    return LEAST + section


# ------------------------------------------------------------------------------------------------ good ones
def test_name_format_and_command_are_enough() -> None:
    spec = parse(LEAST)
    assert (spec.name, spec.dataset.drop, spec.deployment.endpoint) == ("flights", "flights/", "flights")
    assert spec.training.command == ("python", "train.py")
    assert (spec.batching.quiet_period, spec.batching.max_wait) == (timedelta(seconds=10), timedelta(minutes=15))
    assert (spec.evaluation.metric, spec.evaluation.block, spec.evaluation.holdout_blocks) == ("auto", "day", 7)
    assert spec.gate.ask_timeout == timedelta(days=1)
    assert spec.training.compute.timeout == timedelta(hours=1)


def test_every_key_can_be_set() -> None:
    spec = parse(FULL)
    assert spec.dataset.drop == "nyc/flights/"
    assert spec.dataset.max_bytes == 500 * 1024
    assert spec.training.parameters == {"max_iter": 200, "rate": 0.001, "kind": "010", "shuffle": False}
    assert spec.training.compute.model_dump(mode="json") == {
        "target": "azureml",
        "timeout": "2d",
        "instance_type": "Standard_NC4",
        "instance_count": 2,
    }
    assert spec.evaluation.slices == ("origin",)
    assert spec.deployment.endpoint == "late-flights"


def test_a_spec_written_out_reads_back_as_itself() -> None:
    for text in (LEAST, FULL):
        spec = parse(text)
        assert PipelineSpec.model_validate(spec.model_dump(mode="json", exclude_none=True)) == spec


def test_a_spec_made_in_python_gets_the_same_defaults() -> None:
    spec = PipelineSpec(
        name="flights", dataset=Dataset(format="csv"), training=Training(command=("python", "train.py"))
    )
    assert spec == parse(LEAST)


def test_rules_for_files_say_what_the_dataset_says() -> None:
    known = [Column("origin", "string")]
    rules = to_rules(parse(FULL), known)
    assert rules.columns[0] == ColumnRule("origin", "string", nullable=False, allowed=("EWR", "JFK", "LGA"))
    assert rules.columns[1] == ColumnRule("distance", "float", min=0, max=10000)
    assert rules.columns[2] == ColumnRule("tail", pattern="N[0-9A-Z]+", unique=True)
    assert (rules.format, rules.extra_columns, rules.label, rules.event_time) == (
        "csv",
        "refuse",
        "late",
        "scheduled_at",
    )
    assert (rules.min_rows, rules.max_bytes, rules.known) == (10, 512_000, tuple(known))
    assert to_rules(parse(LEAST), ()) == TableRules(format="csv")


def test_the_policy_says_what_the_gate_says() -> None:
    assert to_policy(parse(LEAST)) == Policy()
    assert to_policy(parse(FULL)) == Policy(Action.ASK, Action.KEEP, Action.ASK, Action.ASK, FirstRule.ALWAYS)


def test_the_words_of_the_spec_are_those_of_the_domain() -> None:
    annotation = Evaluation.model_fields["metric"].annotation
    assert set(annotation.__args__) == {"auto", *LOWER_IS_BETTER}  # type: ignore[union-attr]
    assert COLUMN_TYPES == ("string", "int", "float", "bool", "timestamp", "date")


@pytest.mark.parametrize(
    ("written", "seconds"), [("10s", 10), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("366d", 366 * 86_400)]
)
def test_durations(written: str, seconds: int) -> None:
    assert parse(with_section(f"deployment: {{timeout: {written}}}")).deployment.timeout.total_seconds() == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [("1", 1), ("512B", 512), ("500KB", 512_000), ("1.5MB", 1_572_864), ("2GB", 2 * 1024**3), ("1 TB", 1024**4)],
)
def test_sizes(written: str, size: int) -> None:
    assert parse(LEAST.replace("csv", f"csv, max_bytes: {written}")).dataset.max_bytes == size


def test_anchors_work() -> None:
    text = "x: &c {a: 1}".replace("x", "description") + "\n"
    assert "wanted text" in said(LEAST + text)
    shared = LEAST.replace("train.py", "train.py, features: &f [a, b]") + "evaluation: {slices: *f}\n"
    assert parse(shared).evaluation.slices == ("a", "b")


# ------------------------------------------------------------------------------------------------ how it is said
def test_a_problem_names_file_line_key_what_was_found_and_what_is_allowed() -> None:
    text = (
        "name: flights\ndataset:\n\n  format: cvs\ntraining: {command: python train.py}\nevaluation:\n  metrik: mae\n"
    )
    with pytest.raises(BadSpec) as caught:
        parse(text, "flights/pipeline.yaml")
    assert caught.value.message == (
        "flights/pipeline.yaml:4: dataset.format: found 'cvs'; allowed: csv, parquet, jsonl; did you mean 'csv'?\n"
        "flights/pipeline.yaml:7: evaluation.metrik: unknown key; did you mean 'metric'? "
        "Keys here: metric, block, holdout_blocks, slices, confidence"
    )
    assert caught.value.about["problems"] == [
        {
            "line": 4,
            "key": "dataset.format",
            "message": "found 'cvs'; allowed: csv, parquet, jsonl; did you mean 'csv'?",
        },
        {
            "line": 7,
            "key": "evaluation.metrik",
            "message": "unknown key; did you mean 'metric'? Keys here: metric, block, holdout_blocks, slices, confidence",
        },
    ]


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: Flights
dataset:
  format: cvs
  extra_columns: refuse
  label: lat
  columns:
    - {name: late, type: flot}
    - {name: origin, type: string, min: 1}
training:
  command: ""
  features: [origin, origin]
batching: {quiet_period: 1h, max_wait: 1m}
gate: {worse: promote}
gate: {}
surprise: 1
"""
    found = problems_of(text)
    assert [(one["line"], one["key"]) for one in found] == [
        (1, "name"),
        (3, "dataset.format"),
        (5, "dataset.label"),
        (7, "dataset.columns[0].type"),
        (8, "dataset.columns[1].min"),
        (10, "training.command"),
        (11, "training.features[1]"),
        (12, "batching.quiet_period"),
        (13, "gate.worse"),
        (14, "gate"),
        (15, "surprise"),
    ]


def test_a_missing_key_is_told_on_the_line_of_its_section() -> None:
    found = problems_of("name: flights\ndataset: {format: csv}\ntraining:\n  seed: 1\n")
    assert [(one["line"], one["key"]) for one in found] == [(3, "training.command")]
    assert str(found[0]["message"]).startswith("is missing; wanted what makes the model")
    assert {one["key"] for one in problems_of("name: flights\n")} == {"dataset", "training"}
    assert "is missing; wanted a section. Keys here: drop, format," in said("name: flights\n")


# ------------------------------------------------------------------------------------------------ single values
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("batching: {quiet_period: 10}", "batching.quiet_period: found 10; wanted a whole number with a unit"),
        ("batching: {quiet_period: 0s}", "found '0s'; wanted at least 1s and at most 366d"),
        ("batching: {quiet_period: -5s}", "found '-5s'; wanted a whole number with a unit"),
        ("batching: {quiet_period: 1.5h}", "found '1.5h'; wanted a whole number with a unit"),
        ("batching: {max_wait: 999999999d}", "found '999999999d'; wanted at least 1s and at most 366d"),
        ("batching: {max_files: 1001}", "found 1001; wanted at most 1000"),
        ("batching: {max_files: 0}", "found 0; wanted at least 1"),
        ("batching: {max_files: 1.0}", "found 1.0; wanted a whole number"),
        ("batching: {max_files: true}", "found true; wanted a whole number"),
        ("batching: {max_files: '5'}", "found '5'; wanted a whole number"),
        ("batching: [1]", "batching: found a list; wanted a section. Keys here: quiet_period"),
        ("batching:", "batching: found nothing; wanted a section. Keys here: quiet_period"),
        ("description: 2024-01-01", "found 2024-01-01; wanted text (YAML reads 2024-01-01 as a date; with quotes"),
        ("evaluation: {confidence: 1}", "found 1; wanted at most 0.999"),
        ("evaluation: {confidence: .nan}", "found .nan; wanted a finite number"),
        ("evaluation: {confidence: high}", "found 'high'; wanted a number"),
        ("evaluation: {block: dya}", "found 'dya'; wanted hour, day, week, month, or \"rows:N\""),
        ("evaluation: {block: rows:0}", "found 'rows:0'; wanted hour"),
        ("evaluation: {slices: [no]}", "found no; wanted text (YAML reads no as true or false; with quotes, 'no'"),
        ("evaluation: {slices: origin}", "found 'origin'; wanted a list, as in [a, b]"),
        ("gate: {worse: promote}", "found 'promote'; wanted ask or keep; a worse model is never promoted by itself"),
        ("gate: {better: yes}", "found yes; allowed: promote, ask, keep"),
        ("gate: {min_improvement: -1}", "found -1; wanted at least 0"),
        ("deployment: {endpoint: My_Endpoint}", "found 'My_Endpoint'; wanted 1 to 40 lower-case letters"),
        ("deployment: {enabled: 1}", "found 1; wanted true or false"),
        ("budget: {runs_per_day: 0}", "found 0; wanted at least 1"),
    ],
)
def test_a_value_that_does_not_fit(section: str, message: str) -> None:
    assert message in said(with_section(section))


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("command: python 'train.py", "wanted a command line; no closing quotation in this one"),
        ("command: []", "wanted a command with at least one word"),
        ("command: [python, 3]", "training.command[1]: found 3; wanted text (YAML reads 3 as a number"),
        ("command: 5", "found 5; wanted a list, as in [a, b]"),
        ("parameters: {a b: 1}", "training.parameters.a b: found 'a b'; wanted a name of letters"),
        ("parameters: {a: }", "training.parameters.a: found nothing; wanted text, a number, true or false"),
        ("parameters: {a: [1]}", "training.parameters.a: found a list; wanted text"),
        ("parameters: {a: 2024-01-01}", "wanted text, a number, true or false (YAML reads 2024-01-01 as a date"),
        ("parameters: {a: 99999999999999999999}", "wanted a whole number of at most 64 bits"),
        ("parameters: {a: .inf}", "found .inf; wanted a finite number"),
        ("parameters: {a: 010}", "found 010, which YAML reads as 8; write that, or '010' in quotes"),
        ("parameters: {a: 1:30}", "found 1:30, which YAML reads as 90"),
        ("parameters: {a: 1, A: 2}", "found 'A' and 'a'; both would be DROPFORGE_PARAM_A"),
        ("environment: {A: 1}", "found 1; wanted text (YAML reads 1 as a number; with quotes, '1', it is text)"),
        ("environment: {A: yes}", "found yes; wanted text (YAML reads yes as true or false"),
        ("environment: {DROPFORGE_SEED: '1'}", "wanted another name; DROPFORGE_... is what the platform sets"),
        ('environment: {A: "x\\0"}', "wanted text without NUL characters"),
        ("seed: -1", "found -1; wanted at least 0"),
        ("seed: 4294967296", "found 4294967296; wanted at most 4294967295"),
        ("compute: {target: lokal}", "found 'lokal'; allowed: local, azureml, databricks; did you mean 'local'?"),
        ("compute: {timeuot: 1h}", "training.compute.timeuot: unknown key; did you mean 'timeout'?"),
        ("compute: {sizes: [1]}", "training.compute.sizes: found a list; wanted text, a number, true or false"),
        ("features: [a, a]", "training.features[1]: found 'a' twice"),
    ],
)
def test_a_training_value_that_does_not_fit(inside: str, message: str) -> None:
    command = "" if inside.startswith("command") else "\n  command: python train.py"
    assert message in said(f"name: flights\ndataset: {{format: csv}}\ntraining:{command}\n  {inside}\n")


@pytest.mark.parametrize("drop", ["/flights/", "flights", "a/../b/", "a//b/", "./a/", "a\\b/", "/", '"a\\nb/"', '""'])
def test_a_drop_folder_that_could_leave_its_place_is_refused(drop: str) -> None:
    assert "dataset.drop: found" in said(LEAST.replace("csv", f"csv, drop: {drop}"))


@pytest.mark.parametrize("size", ["2 gigs", "-1", "0", "1e999", "2gb", "99999999999TB", "true", "[]"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    assert "dataset.max_bytes: found" in said(LEAST.replace("csv", f"csv, max_bytes: {size}"))


# ------------------------------------------------------------------------------------------------ between keys
def dataset(*columns: str, more: str = "") -> str:
    lines = "".join(f"    - {column}\n" for column in columns)
    return f"name: flights\ndataset:\n  format: csv\n  columns:\n{lines}{more}training: {{command: python train.py}}\n"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("{name: a, type: int, min: 3, max: 2}", "columns[0].min: found 3, above max 2; wanted min <= max"),
        ("{name: a, type: string, max: 2}", "columns[0].max: found a bound for a column of type string"),
        ("{name: a, type: date, min: 2}", "columns[0].min: found a bound for a column of type date"),
        ("{name: a, type: int, pattern: x}", "columns[0].pattern: found a pattern for a column of type int"),
        ("{name: a, pattern: '(x'}", "wanted a regular expression; this one does not compile: missing )"),
        (
            "{name: a, type: int, allowed: [1, x]}",
            "columns[0].allowed[1]: found 'x'; wanted a value of a column of type int",
        ),
        ("{name: a, type: int, allowed: [1, true]}", "found true; wanted a value of a column of type int"),
        ("{name: a, type: bool, allowed: [1]}", "found 1; wanted a value of a column of type bool"),
        (
            "{name: a, type: string, allowed: [NO]}",
            "found NO; wanted a value of a column of type string (YAML reads NO as",
        ),
        ("{name: a, type: date, allowed: [x]}", "found a list for a column of type date"),
        ("{name: a, type: string, allowed: []}", "found a list; wanted at least one value"),
        ("{name: a, allowed: [1, 2, 1]}", "columns[0].allowed[2]: found 1 twice"),
        ("{name: a, type: text}", "found 'text'; allowed: string, int, float, bool, timestamp, date"),
        ("{name: _source}", "columns[0].name: found '_source'; wanted another name"),
        ("{name: ''}", "found ''; wanted text that is not empty"),
        ("{nme: a}", "columns[0].nme: unknown key; did you mean 'name'? Keys here: name, type"),
        ("a", "columns[0]: found 'a'; wanted a section. Keys here: name, type"),
    ],
)
def test_a_column_rule_that_cannot_be_kept(column: str, message: str) -> None:
    assert message in said(dataset(column))


def test_numbers_of_either_kind_are_allowed_in_a_float_column() -> None:
    assert parse(dataset("{name: a, type: float, allowed: [1, 2.5]}")).dataset.columns[0].allowed == (1, 2.5)


def test_a_column_is_declared_once() -> None:
    assert ":6: dataset.columns[1].name: column 'a' is declared twice; the first is on line 5" in said(
        dataset("{name: a}", "{name: a}")
    )


@pytest.mark.parametrize("extra", ["drop", "refuse"])
def test_columns_that_roles_name_must_be_declared_when_others_are_not_kept(extra: str) -> None:
    text = dataset("{name: a}", "{name: late}", more=f"  extra_columns: {extra}\n  label: lat\n  event_time: at\n")
    text = text.replace("train.py", "train.py, features: [a, b]") + "evaluation: {slices: [c]}\n"
    message = said(text)
    assert (
        "dataset.label: found 'lat', which is not a declared column, and others are not kept; did you mean" in message
    )
    assert "dataset.event_time: found 'at', which is not" in message
    assert "training.features[1]: found 'b', which is not" in message
    assert "evaluation.slices[0]: found 'c', which is not" in message
    assert "training.features[0]" not in message
    parse(text.replace(extra, "keep"))


def test_without_declared_columns_any_column_may_be_named() -> None:
    parse(LEAST.replace("csv", "csv, extra_columns: refuse, label: late"))


def test_the_label_is_neither_feature_nor_event_time() -> None:
    text = LEAST.replace("csv", "csv, label: late, event_time: late").replace("train.py", "train.py, features: [late]")
    message = said(text)
    assert "training.features[0]: found 'late', which is the label" in message
    assert "dataset.event_time: found 'late', which is the label" in message


@pytest.mark.parametrize("metric", ["auto", *LOWER_IS_BETTER])
@pytest.mark.parametrize("kind", COLUMN_TYPES)
def test_a_metric_fits_the_type_of_its_label_or_is_refused(metric: str, kind: str) -> None:
    fitting = {
        "auto": {"string", "int", "float", "bool"},
        "mae": {"int", "float"},
        "mse": {"int", "float"},
    }.get(metric, {"string", "int", "bool"})
    text = dataset(f"{{name: late, type: {kind}}}", more="  label: late\n") + f"evaluation: {{metric: {metric}}}\n"
    if kind in fitting:
        parse(text)
    else:
        assert f"evaluation.metric: found {metric}, which does not fit the label, a column of type {kind}" in said(text)


def test_an_event_time_column_is_a_time_and_a_slice_column_has_few_values() -> None:
    text = dataset("{name: at, type: string}", "{name: far, type: float}", more="  event_time: at\n")
    message = said(text + "evaluation: {slices: [far]}\n")
    assert "dataset.event_time: found a column of type string; wanted one of type timestamp or date" in message
    assert "evaluation.slices[0]: found 'far', a column of type float" in message


def test_quiet_is_not_awaited_longer_than_anything_else() -> None:
    assert "batching.max_wait: found quiet_period 10s and max_wait 5s" in said(with_section("batching: {max_wait: 5s}"))
    assert parse(with_section("batching: {quiet_period: 15m}")).batching.quiet_period == timedelta(minutes=15)


def test_too_few_blocks_for_any_verdict_are_refused_unless_the_gate_does_without() -> None:
    few = "evaluation: {holdout_blocks: 4}\n"
    assert (
        "evaluation.holdout_blocks: found 4 held-out blocks and confidence 0.9; no verdict comes from fewer than 5"
        in (said(with_section(few)))
    )
    parse(with_section(few + "gate: {cannot_tell: ask}\n"))
    parse(with_section("evaluation: {holdout_blocks: 4, confidence: 0.8}\n"))
    assert "evaluation.confidence: found 7 held-out" in said(with_section("evaluation: {confidence: 0.99}\n"))


# ------------------------------------------------------------------------------------------------ canary
def test_without_a_canary_a_model_gets_all_of_the_traffic_at_once() -> None:
    assert to_canary_rules(parse(LEAST)) is None


def test_a_canary_is_read_with_its_defaults() -> None:
    rules = to_canary_rules(parse(LEAST + "deployment: {canary: {steps: [5, 25], mirror: 10}}\n"))
    assert rules == CanaryRules((5, 25), timedelta(minutes=2), 0.01, 1.5, 100, 10)


@pytest.mark.parametrize(
    ("canary", "message"),
    [
        (
            "{steps: []}",
            "deployment.canary.steps: found a list; wanted percents from 1 to 99, each larger than the one",
        ),
        ("{steps: [25, 5]}", "each larger than the one before, as in [5, 25]"),
        ("{steps: [5, 100]}", "wanted percents from 1 to 99"),
        ("{steps: [5.5]}", "deployment.canary.steps[0]: found 5.5; wanted a whole number"),
        ("{bake: 2m}", "deployment.canary.steps: is missing; wanted the percents of the traffic"),
        ("{steps: [5], mirror: 101}", "deployment.canary.mirror: found 101; wanted at most 100"),
        ("{steps: [5], max_latency_ratio: 0.5}", "wanted at least 1"),
        ("{steps: [5], step: 3}", "deployment.canary.step: unknown key; did you mean 'steps'? Keys here: steps, bake"),
        ("5", "deployment.canary: found 5; wanted the steps in which"),
    ],
)
def test_a_canary_that_does_not_fit(canary: str, message: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse(LEAST + f"deployment: {{canary: {canary}}}\n")
    assert message in caught.value.message
