"""Models of scikit-learn on real impressions: the engine gives their probabilities."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conversion_data import impressions
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC

import fastmtr
from fastmtr.bundle import open_bundle
from fastmtr.convert.verify import verify
from fastmtr.errors import ConversionError

COLUMNS = {"user_id": 0, "tab": 1, "author_id": 2, "duration": 3, "numbers": (4, 6)}
INPUTS = {"user_id": "user", "tab": "context", "author_id": "item", "duration": "item", "numbers": "item"}
ROWS = 400


def data() -> tuple[np.ndarray, np.ndarray]:
    arrays, labels = impressions()
    parts = [np.reshape(arrays[name][:ROWS], (ROWS, -1)) for name in COLUMNS]
    return np.concatenate(parts, axis=1).astype(float), labels[:ROWS].astype(int)


def encoder(**options: Any) -> ColumnTransformer:
    one_hot = OneHotEncoder(**{"handle_unknown": "ignore", **options})
    return ColumnTransformer([("ids", one_hot, [0, 1, 2]), ("numbers", StandardScaler(), slice(3, 6))])


def fitted(model: Any, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(data()[0], y)


def converted(model: Any, **options: Any) -> fastmtr.Conversion:
    return fastmtr.convert(model, sample=data()[0], columns=COLUMNS, inputs=INPUTS, **options)


BINARY = {
    "logistic regression": make_pipeline(encoder(), LogisticRegression(max_iter=50)),
    "categories dropped": make_pipeline(encoder(drop="first", handle_unknown="error"), LogisticRegression(max_iter=50)),
    "calibrated svm": make_pipeline(encoder(), CalibratedClassifierCV(LinearSVC(max_iter=50), cv=2)),
    "perceptron": make_pipeline(encoder(), MLPClassifier((12, 8), max_iter=3, random_state=0)),
    "tanh perceptron": make_pipeline(StandardScaler(), MLPClassifier((6,), activation="tanh", max_iter=3)),
    "sgd": make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", max_iter=20)),
    "min-max": make_pipeline(MinMaxScaler(clip=True), LogisticRegression()),
    "robust": make_pipeline(RobustScaler(), MaxAbsScaler(), LogisticRegression()),
    "projection": make_pipeline(StandardScaler(), PCA(3, whiten=True), LogisticRegression()),
    "nested": Pipeline(
        [("all", Pipeline([("code", encoder()), ("rest", "passthrough")])), ("model", LogisticRegression())]
    ),
}
REGRESSIONS = {
    "least squares": LinearRegression(),
    "ridge": make_pipeline(encoder(), Ridge()),
    "regressor": make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(6,), max_iter=3)),
}


@pytest.mark.parametrize("name", BINARY)
def test_classifiers(name: str) -> None:
    model = fitted(BINARY[name], data()[1][:, 0])
    conversion = converted(model, tasks=["click"])
    assert verify(conversion).worst.engine < 2e-6
    x = data()[0]
    assert conversion.sample is not None
    found = conversion.source.score(conversion.sample)["click"][:, 0]
    np.testing.assert_allclose(found, model.predict_proba(x)[:, 1], atol=1e-5)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(name: str) -> None:
    conversion = converted(fitted(REGRESSIONS[name], np.abs(data()[0][:, 3]) * 3 + data()[1][:, 0]))
    assert verify(conversion).worst.engine < 2e-6
    assert conversion.graph.tasks == ("score",)


@pytest.mark.parametrize("last", [LogisticRegression(max_iter=50), MLPClassifier((5,), max_iter=3)])
def test_several_classes_are_a_task_each(last: Any) -> None:
    labels = data()[1]
    conversion = converted(fitted(make_pipeline(encoder(), last), labels[:, 0] + labels[:, 1]))
    assert conversion.graph.tasks == ("0", "1", "2")
    assert verify(conversion).worst.engine < 2e-6


def test_several_labels_are_a_task_each() -> None:
    model = fitted(make_pipeline(StandardScaler(), MLPClassifier((5,), max_iter=3)), data()[1])
    conversion = converted(model, tasks=["click", "long_view", "like"])
    assert verify(conversion).worst.engine < 2e-6


def test_one_estimator_a_task() -> None:
    x, labels = data()
    models = {
        "click": fitted(make_pipeline(encoder(), LogisticRegression(max_iter=50)), labels[:, 0]),
        "long_view": fitted(make_pipeline(encoder(), MLPClassifier((6,), max_iter=3)), labels[:, 1]),
    }
    conversion = converted(models)
    assert conversion.graph.tasks == ("click", "long_view")
    assert conversion.source.name == "scikit-learn LogisticRegression, MLPClassifier"
    assert verify(conversion).worst.engine < 2e-6
    domains = {i.name: (i.domain, i.kind) for i in conversion.graph.inputs}
    assert domains["author_id"] == ("item", "ids")
    assert domains["numbers"] == ("item", "dense")
    assert x.shape[1] == 6


def test_a_data_frame_names_its_columns(tmp_path: Any) -> None:
    x, labels = data()
    frame = pd.DataFrame(x[:, :4], columns=["user_id", "tab", "author_id", "duration"])
    code = ColumnTransformer(
        [
            ("ids", OneHotEncoder(handle_unknown="ignore"), ["user_id", "author_id"]),
            ("number", "passthrough", ["duration"]),
        ]
    )
    model = make_pipeline(code, LogisticRegression(max_iter=50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(frame, labels[:, 0])
    path = fastmtr.convert(
        model,
        sample=frame,
        inputs=INPUTS,
        tasks=["click"],
        items=x[:, 2].astype(int),
        groups=x[:, 0].astype(int),
        out=tmp_path / "bundle",
    )
    assert [i["name"] for i in open_bundle(path).plan["inputs"]] == ["user_id", "author_id", "duration"]


def test_what_has_no_counterpart_says_so() -> None:
    labels = data()[1]
    with pytest.raises(
        ConversionError, match="estimator RandomForestClassifier has no counterpart in a graph; there are"
    ):
        converted(RandomForestClassifier(2).fit(data()[0], labels[:, 0]))
    with pytest.raises(ConversionError, match="fit a CalibratedClassifierCV"):
        converted(fitted(LinearSVC(), labels[:, 0]))
    with pytest.raises(ConversionError, match="LogisticRegression is not fitted"):
        converted(make_pipeline(StandardScaler().fit(data()[0]), LogisticRegression()), tasks=["click"])
    with pytest.raises(ConversionError, match="needs sample="):
        fastmtr.convert(LogisticRegression())
    isotonic = CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2)
    with pytest.raises(ConversionError, match="method='sigmoid' has"):
        converted(fitted(isotonic, labels[:, 0]))
    with pytest.raises(ConversionError, match="1 outputs, but 2 tasks"):
        converted(fitted(LogisticRegression(), labels[:, 0]), tasks=["a", "b"])
