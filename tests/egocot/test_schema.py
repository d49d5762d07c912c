"""The JSON Schema, the data card and the columns say what the dataclass says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from good_record import GOOD, WRONG, changed, corrupt

from embodied.egocot import records as module
from embodied.egocot.fields import hints
from embodied.egocot.records import Record, RecordError
from embodied.egocot.schema import json_schema
from embodied.types import STATUSES

SCHEMA = Path(__file__).parents[2] / "data/egocot/schema.json"
REMAKE = "from embodied.egocot.schema import write_schema; write_schema('data/egocot/schema.json')"


def test_the_schema_in_the_repository_is_the_records_own() -> None:
    assert json.loads(SCHEMA.read_text("utf-8")) == json_schema(), f'run: python -c "{REMAKE}"'


def test_the_schema_says_what_the_dataclass_says() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    objects = {"Record": schema, **schema["$defs"]}
    assert set(objects) == {"Record", "Place", "Answer", "Judgement", "Provenance"}
    for name, found in objects.items():
        fields = hints(getattr(module, name))
        assert found["required"] == list(found["properties"]) == list(fields)
        assert found["type"] == "object" and found["additionalProperties"] is False
        for field, hint in fields.items():
            kinds = found["properties"][field]
            assert ({"type": "null"} in kinds.get("anyOf", [])) == hint.nullable
    assert objects["Judgement"]["properties"]["status"]["enum"] == list(STATUSES)
    x = objects["Place"]["properties"]["x"]
    assert (x["type"], x["minimum"], x["exclusiveMaximum"]) == ("number", 0, 1)


def test_another_validator_agrees_by_the_schema() -> None:
    """On all but what holds between fields, and halves of surrogate pairs."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    rng = np.random.default_rng(2)
    between = ("if and only if", "comes before", "twice", "a verdict on", "a model made", "U+D8")
    for record in [
        GOOD,
        *(changed(w[0], w[1]) for w in WRONG),
        *(corrupt(rng)[0] for _ in range(2000)),
    ]:
        try:
            Record.from_json(record)
            reason = ""
        except RecordError as error:
            reason = str(error)
        if not any(words in reason for words in between):
            assert validator.is_valid(record) == (not reason), (reason, record)


def test_the_example_in_the_card_is_a_record_and_every_field_is_explained() -> None:
    card = (SCHEMA.parent / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```json\n(.*)\n```", card)
    record = Record.from_json(json.loads(example))
    assert json.dumps(record.to_json(), ensure_ascii=False) == example
    for name in GOOD:
        assert f"`{name}`" in card
