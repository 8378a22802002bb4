"""fastmtr.config: a whole file, and what is said about a wrong one."""

import pytest

pytest.importorskip("torch", reason="[model] and [training] are read by modules that need torch")
from fastmtr.config import load_config, parse_config
from fastmtr.errors import ConfigError

GOOD = """
[data]
log = "log.csv"

[schema]
user = "user_id"
item = "video_id"
timestamp = "time_ms"
timestamp_unit = "ms"
features = [
  {name = "user_id", entity = "user", kind = "categorical", dim = 8},
  {name = "video_id", entity = "item", kind = "categorical"},
]
tasks = [{name = "click"}, {name = "like", weight = 2.0}]

[split]
valid_from = "2022-05-01"
test_from = "2022-05-02"

[model]
type = "mmoe"
expert = [32, 16]

[model.two_tower]
task = "click"

[fusion]
weights = {click = 1, like = 0.5}
"""


def test_reads_every_section():
    config = parse_config(GOOD)
    assert config.schema.features[0].dim == 8
    assert config.model.expert == (32, 16)
    assert config.fusion.weights == {"click": 1.0, "like": 0.5}
    assert config.retrieval.index == "auto"
    assert config.training.epochs >= 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[fusion]", "[fusoin]", "unknown key 'fusoin'; did you mean 'fusion'?"),
        ("expert = ", "expertz = ", "unknown key 'model.expertz'; did you mean 'expert'?"),
        ("dim = 8", "dims = 8", r"unknown key 'schema.features\[0\].dims'; did you mean 'dim'?"),
        ("dim = 8", "dim = 0", r"schema.features\[0\].dim: expected int >= 1; found 0"),
        ("dim = 8", "dim = '8'", r"schema.features\[0\].dim: expected int, got str; found '8'"),
        ('type = "mmoe"', 'type = "moe"', "model.type: 'moe' is no choice; did you mean 'mmoe'?"),
        ('log = "log.csv"', "", "key 'data.log' is missing"),
        ("[split]", "[tasks]\nshape = 'wide'\n[split]\nvalid_to = 1", "unknown key 'split.valid_to'"),
        ('test_from = "2022-05-02"', "", "key 'split.test_from' is missing"),
        ('name = "like"', 'name = "click"', "schema: task 'click' stands twice"),
        ("like = 0.5", "love = 0.5", "fusion.weights: there is no task 'love'"),
        ("like = 0.5", 'like = "much"', "fusion.weights: expected float, got str"),
        (
            'task = "click"',
            'task = "watch"',
            r"model.two_tower.task: must be a binary task, one of \['click', 'like'\]",
        ),
        ("[model.two_tower]", "[model.two_tower]\ntemperature = -1", "model.two_tower.temperature: expected float > 0"),
        ('user = "user_id"', "user = ", "not valid TOML"),
    ],
)
def test_says_what_is_wrong(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match="^my.toml: " + message):
        parse_config(GOOD.replace(old, new, 1), name="my.toml")


def test_all_misspelt_keys_are_told_at_once():
    text = GOOD.replace("expert =", "expertz =").replace("log =", "lag =")
    with pytest.raises(ConfigError, match=r"data\.lag.*model\.expertz"):
        parse_config(text)


def test_files(tmp_path):
    path = tmp_path / "train.toml"
    with pytest.raises(ConfigError, match=r"train.toml does not exist$"):
        load_config(path)
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=r"train.tml does not exist; did you mean .*train.toml\?"):
        load_config(tmp_path / "train.tml")
    with pytest.raises(
        ConfigError, match=r"data.log: there is no file .*log.csv \(paths are relative to the configuration"
    ):
        load_config(path)
    (tmp_path / "log.csv").write_text("user_id\n")
    assert load_config(path) == parse_config(GOOD)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path)
